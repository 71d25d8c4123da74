"""The contracts that everything else speaks: requests, views and batches, the time of a batch,
attainment."""
