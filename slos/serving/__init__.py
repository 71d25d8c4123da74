"""The policies inside vLLM: the plug-in, objectives on the wire, calibration, and the command that
starts it."""
