"""The tools of every study: capacity search, grids of runs, sizes, statistics and plots."""
