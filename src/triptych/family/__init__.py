"""How the Qwen-VL families differ, in one table, and which of a model's weights learn.

Takes a model's small files (``config.json``, tokenizer, chat template); gives `Family`, `ModelFiles` and a `Recipe`
that says for every part and layer whether it learns.
"""
