"""The studies: a module for each notebook, with what it runs, what it finds and its figures."""
