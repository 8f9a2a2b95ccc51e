"""Pictures of what the library does: grids, strips, animations, scrubbers, charts.

Every `show_...` and `plot_...` function returns a matplotlib Figure that pyplot has already let go
of: as the last value of a cell it appears once, and in a script it is saved with `figure.savefig`.
"""
