"""What a run will take before it runs: memory against a GPU, what settings would save, time, the row that fits.

Takes settings and exact lengths; gives a `Forecast`, `Saving`s, a `Duration`, and the size of rows for ``batch: auto``.
"""
