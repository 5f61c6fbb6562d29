"""LLaMA-Factory's run files for supervised fine-tuning: a table with a row for every key, and what follows from it.

keys.py       what a row says; all rows together       checks.py     the errors
data_keys.py, model_keys.py, method_keys.py, ...       translate.py  values -> Triptych's settings
"""
