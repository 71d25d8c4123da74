"""The policies inside vLLM: the plug-in, objectives on the wire, calibration, the launcher."""
