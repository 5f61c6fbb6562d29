"""The first run on a user's own data: what the data is, a run file that fits it, and example run files to copy.

Takes data files and a model; gives a `Survey`, `Choices`, and a commented run file.
"""
