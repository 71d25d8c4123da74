"""Simulated time: one clock, replicas that host real policies, and clusters of them."""
