"""How addresses that data names are opened: under which conditions, and within which bounds. See ``SECURITY.md``."""
