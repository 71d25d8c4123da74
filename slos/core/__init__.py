"""The contracts that all packages share: requests, views, batches, step times, attainment."""
