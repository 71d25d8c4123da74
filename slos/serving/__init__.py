"""The policies inside vLLM."""
