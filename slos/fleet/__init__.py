"""Many vLLM replicas behind one address, by Ray Serve: `python -m slos.fleet MODEL`."""
