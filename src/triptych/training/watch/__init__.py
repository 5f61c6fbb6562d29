"""Following a run while it trains: lines on the terminal, the log, trackers, and the live report.

Takes events of `Trainer`; none of these changes what is trained.
"""
