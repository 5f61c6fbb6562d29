"""From data files to rows; no torch up to ``batch``."""
