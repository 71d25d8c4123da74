"""The tools of every study: capacities, grids of runs, sizes, statistics and plots."""
