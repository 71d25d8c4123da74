"""A client that replays a workload against a server and measures the answers."""
