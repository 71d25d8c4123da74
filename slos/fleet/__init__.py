"""Many vLLM replicas behind one address, by Ray Serve."""
