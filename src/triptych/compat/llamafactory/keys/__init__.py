"""One row for every key of a LLaMA-Factory run file: what it becomes here.

Takes nothing; gives `KEYS`, the whole table, which translation and docs/llamafactory-keys.md are made from.
"""
