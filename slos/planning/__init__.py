"""The algorithm of SLOs-Serve: what is admitted, how batches are formed, and the proof that
promises hold."""
