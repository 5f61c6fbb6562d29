"""Training: transformers' `Trainer`, fed with planned rows.

Takes `RunSettings` and `Prepared`; gives the folder ``final`` with the trained weights, logs and a summary.
"""
