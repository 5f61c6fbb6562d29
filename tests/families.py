"""Tiny random models of every family, in the architectures that transformers has, under their released chat templates.

The templates are those that TRL keeps to recognise models by; TRL itself is never imported.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

SIZE, HEADS = 64, 4
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
TEXT: dict[str, Any] = {
    "hidden_size": SIZE,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": SIZE // HEADS,
    "max_position_embeddings": 32768,
    "rope_parameters": ROPE,
    "initializer_range": 0.1,
}
VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": SIZE,
    "intermediate_size": 96,
    "num_heads": HEADS,
    "out_hidden_size": SIZE,
    "patch_size": 16,
    "initializer_range": 0.1,
    "num_position_embeddings": 64,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
INTERLEAVED = {"rope_parameters": {**ROPE, "mrope_interleaved": True}}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    # A quarter of the head's dimensions are rotated, as released: of 64, these are 8 pairs for three axes.
    "head_dim": 64,
    "rope_parameters": {**ROPE, "mrope_interleaved": True, "partial_rotary_factor": 0.25},
}


def without(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


@dataclass(frozen=True)
class Architecture:
    """What makes a tiny model of a family."""

    config: str
    """Class of transformers; the model's is ``<prefix>ForConditionalGeneration``."""
    template: str
    """Name of the chat template in TRL's collection."""
    text: dict[str, Any]
    vision: dict[str, Any]
    patch: int = 16
    thinks: bool = False
    """Whether its tokenizer has the thinking marks."""
    mean: float | None = 0.5
    std: float | None = 0.5
    extra: dict[str, Any] = field(default_factory=dict)


ARCHITECTURES: dict[str, Architecture] = {
    "qwen2_5_vl": Architecture(
        config="Qwen2_5_VLConfig",
        template="qwen2_5_vl",
        text=without(TEXT, "head_dim"),
        # Windows of 4 x 4 tokens, which the images of the tests do not divide into evenly; the last layer sees all.
        vision={
            **without(VISION, "num_position_embeddings"),
            "patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [1],
        },
        patch=14,
        mean=None,
        std=None,
    ),
    "qwen3_vl": Architecture(
        config="Qwen3VLConfig",
        template="qwen3_vl",
        text={**TEXT, **INTERLEAVED},
        vision={**VISION, "deepstack_visual_indexes": [0]},
        thinks=True,
    ),
    "qwen3_vl_moe": Architecture(
        config="Qwen3VLMoeConfig",
        template="qwen3_vl",
        text={**TEXT, **INTERLEAVED, **EXPERTS},
        vision={**VISION, "deepstack_visual_indexes": [0]},
        thinks=True,
    ),
    "qwen3_5": Architecture(
        config="Qwen3_5Config",
        template="qwen3_5_think",
        text={**TEXT, **LINEAR},
        vision=VISION,
        thinks=True,
    ),
    "qwen3_5_moe": Architecture(
        config="Qwen3_5MoeConfig",
        template="qwen3_5_nothink",
        text={**without(TEXT, "intermediate_size"), **LINEAR, **EXPERTS, "shared_expert_intermediate_size": 32},
        vision=VISION,
        thinks=True,
    ),
    "qwen4_exp": Architecture(
        config="Qwen4ExpConfig",
        template="qwen3_8",
        text={
            **without(TEXT, "intermediate_size"),
            **LINEAR,
            **EXPERTS,
            "shared_expert_intermediate_size": 32,
            "hc_count": 2,
            "hc_lowrank": 8,
            "ple_layer_ids": [1],
            "heads_per_ngram": 2,
            "ngram_vocab_size_base": 100,
            "make_ngram_vocab_size_divisible_by": 8,
            "split_ngram_parts": 2,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 32,
            "indexer_budget": 16,
            "indexer_compress_ratio": 4,
        },
        vision=VISION,
        thinks=True,
    ),
}
SLOW = ("qwen4_exp",)
"""Families whose reference code in transformers walks over tokens one by one; they have a test of their own."""
FAMILIES = ("qwen2_vl", *(name for name in ARCHITECTURES if name not in SLOW))


def released_template(name: str) -> str:
    """A chat template as released, by its name in TRL's collection."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def write_family(
    folder: Path, family: str, texts: Iterable[str], *, seed: int, limits: dict[str, int], template: str | None = None
) -> None:
    """A plain model folder with random weights.

    Args:
        folder: where.
        family: key of ``ARCHITECTURES``.
        texts: what its tokenizer learns its merges from.
        seed: of the weights.
        limits: the image processor's ``shortest_edge`` and ``longest_edge``, px of area.
        template: another chat template than the family's.
    """
    from triptych.quickstart.tiny import IMAGE_PROCESSOR, make_tiny_tokenizer

    made = ARCHITECTURES[family]
    tokenizer = make_tiny_tokenizer(texts)
    if made.thinks:  # added, but not special: they may be written in a text
        tokenizer.add_tokens([AddedToken(mark, special=False) for mark in ("<think>", "</think>")])
    tokenizer.chat_template = template or released_template(made.template)
    tokenizer.save_pretrained(folder)
    _model(made, tokenizer, seed).save_pretrained(folder)
    processor = {**IMAGE_PROCESSOR, "patch_size": made.patch, "size": limits}
    if made.mean is not None:
        processor |= {"image_mean": [made.mean] * 3, "image_std": [made.std] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def _model(made: Architecture, tokenizer: PreTrainedTokenizerBase, seed: int) -> transformers.PreTrainedModel:
    ids = tokenizer.get_vocab()
    ends = {"bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"]}
    config = getattr(transformers, made.config)(
        text_config={**made.text, **ends, "vocab_size": len(tokenizer), "tie_word_embeddings": True},
        vision_config=made.vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    model_class = getattr(transformers, made.config.replace("Config", "ForConditionalGeneration"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: transformers.PreTrainedModel = model_class(config)
    model.generation_config = transformers.GenerationConfig(
        do_sample=False, pad_token_id=ids["<|endoftext|>"], eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]]
    )
    return model
