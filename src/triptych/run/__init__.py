"""One run: its settings, and everything that is decided before torch is imported.

Takes a run file and ``key=value`` overrides; gives `RunSettings`, then `Prepared`: model files and a `Corpus` for each
split. Nothing here or in the folders below imports torch.
"""
