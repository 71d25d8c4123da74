"""Named GPUs: what a model on one of them takes and holds, and how that was fitted to
measurements."""
