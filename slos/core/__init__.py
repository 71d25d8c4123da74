"""The contracts that all other packages use: requests, views and batches, the time of a batch,
attainment."""
