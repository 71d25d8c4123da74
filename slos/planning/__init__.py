"""The algorithm of SLOs-Serve: which requests are admitted, how batches are formed, and the proof
that promises hold."""
