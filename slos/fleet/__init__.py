"""Many vLLM replicas behind one address, with Ray Serve: `python -m slos.fleet MODEL`."""
