"""The algorithm of SLOs-Serve: admission, batch formation, and the proof of promises."""
