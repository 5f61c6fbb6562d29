"""Where the work on data is done, and who watches it.

Takes functions and pieces of data; gives their results in order, from processes of this machine or of a Ray cluster,
and tells a `Progress` how far the work is.
"""
