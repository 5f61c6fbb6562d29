"""A trained folder as a plain model folder: merged, saved, read again, proved equal.

Takes the folder of a checkpoint; gives a folder that transformers and vLLM load, a `Proof`, and a model card.
"""
