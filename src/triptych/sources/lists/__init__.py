"""Lists of data sets that other tools keep in a file of their own: each entry becomes a source.

dataset_info.py reads LLaMA-Factory's, weighted_lists.py those of LLaVA and InternVL; entries.py finds out which it is.
"""
