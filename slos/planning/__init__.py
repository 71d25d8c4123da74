"""The algorithm of SLOs-Serve: who is admitted, how batches are formed, and the proof that promises
hold."""
