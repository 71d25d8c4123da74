"""Profiles: how long the steps of a model take on a GPU and how many tokens its KV cache holds."""
