"""One row for every key of a LLaMA-Factory run file: what it becomes here.

Takes nothing; gives `KEYS`, the whole table, which translation and docs/migrating.md are made from.
"""
