"""The two models that all tools train: random Qwen2-VLs in float32, as whole folders that each of them loads offline.

tiny          text width 64, 2 layers, 4 heads (2 of keys), intermediate 128, the real vocabulary of 151,936 words,
              tied; tower of depth 2, width 64. Nearly all its work is in the head
proportioned  the proportions of Qwen2-VL-2B (feature_cache.py): language layers 23.4 M, head 4.2 M, tower with
              merger 10.4 M parameters; 1.31 B, 0.23 B and 0.67 B there. A vocabulary of the workload's words
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from feature_cache import SMALL, make_model
from triptych.quickstart.tiny import CHAT_TEMPLATE, IMAGE_PROCESSOR, make_tiny_tokenizer
from workload import WORDS

TINY: dict[str, Any] = {
    "text": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 151_936},
    "heads": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "vision": {"depth": 2, "embed_dim": 64, "num_heads": 4},
}
MIN_PIXELS = 56 * 56


def write_model(folder: Path, name: str, tokenizer_folder: Path, max_pixels: int) -> None:
    """Write the model ``name`` into ``folder``, its processor limited to ``max_pixels`` per image.

    Args:
        folder: to write to; one that is there is kept.
        name: ``tiny`` or ``proportioned``.
        tokenizer_folder: Qwen2-VL's tokenizer, for ``tiny``.
        max_pixels: largest area of a resized image, px.
    """
    if folder.exists():
        return
    if name == "tiny":
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
        tokenizer.chat_template = CHAT_TEMPLATE  # as released with Qwen2-VL; the tokenizer alone has a text template
    else:
        tokenizer = make_tiny_tokenizer([" ".join(WORDS)] * 50, SMALL["text"]["vocab_size"])
    write_folder(folder, TINY if name == "tiny" else SMALL, tokenizer, max_pixels)


def write_folder(folder: Path, sizes: dict[str, Any], tokenizer: PreTrainedTokenizerBase, max_pixels: int) -> None:
    """Write a model of these sizes as a plain folder, with its processor and the chat template of Qwen2-VL."""
    ids: dict[str, int] = tokenizer.get_vocab()
    torch.manual_seed(0)
    model = make_model(sizes, ids)
    text, end = ids["<|endoftext|>"], ids["<|im_end|>"]
    config = model.config.text_config
    config.bos_token_id, config.eos_token_id, config.pad_token_id = text, end, text
    model.generation_config = GenerationConfig(
        do_sample=False, bos_token_id=text, eos_token_id=[end, text], pad_token_id=text
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = {
        **IMAGE_PROCESSOR,
        "processor_class": "Qwen2VLProcessor",
        "size": {"shortest_edge": MIN_PIXELS, "longest_edge": max_pixels},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
