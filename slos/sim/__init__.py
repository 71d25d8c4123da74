"""Simulated time: one clock, replicas that run the real policies, and clusters of them."""
