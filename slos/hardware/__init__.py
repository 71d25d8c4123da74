"""Named GPUs: what a model on one of them takes and holds, fitted to measurements."""
