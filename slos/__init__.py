"""SLOs-Serve: how much load can this hardware carry under these objectives, and which scheduler
carries most."""
