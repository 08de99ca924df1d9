"""Metrics of a run: as typed rows, on disk, on the terminal, as a plot."""
