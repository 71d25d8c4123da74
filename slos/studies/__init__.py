"""The studies: a module for each notebook, with its runs, its tables and its figures."""
