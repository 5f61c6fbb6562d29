"""The weights: loaded, split into parts, frozen or adapted, merged again.

Takes `ModelSettings` and a `Family`; gives a transformers model, with peft's adapters where asked.
"""
