"""One module a notebook, and what needs a GPU."""
