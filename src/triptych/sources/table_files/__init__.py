"""Parquet and Arrow files: opened by row group, and their columns as what JSON would hold, images as references."""
