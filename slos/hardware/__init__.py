"""Named GPUs: profiles of models on them, and the command that measures one."""
