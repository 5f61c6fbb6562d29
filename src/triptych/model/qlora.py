"""QLoRA (Dettmers et al. 2023): the language layers' frozen weights in 4 bits, adapters beside them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from triptych.errors import ConfigError
from triptych.family.family import Family
from triptych.model.parts import HEAD, part_of

# Of one weight: 4 bits, its share of an 8-bit scale per 64 weights, and of a float32 scale per 256 of those.
BYTES_PER_WEIGHT = 0.5 + 1 / 64 + 4 / (64 * 256)


def require_four_bit() -> None:
    """Make sure that this machine computes with 4-bit weights; packages were checked before (``run.hf_names``).

    Raises:
        ConfigError: with the reason and what to do instead.
    """
    if not torch.cuda.is_available():
        raise ConfigError(
            "model.train: qlora needs a CUDA GPU and there is none: 4-bit arithmetic is far slower elsewhere; use "
            "`train: lora` here"
        )


def four_bit(family: Family) -> BitsAndBytesConfig:
    """How the weights are loaded: linear layers of the language model as 4-bit normal floats, the rest as it is."""
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=[family.vision, *family.merger, HEAD],
    )


def quantised_weights(model: nn.Module, family: Family) -> Iterator[str]:
    """Names of the weights that ``four_bit`` packs, in a model that was made without it."""
    for name, module in model.named_modules():
        own = name.removesuffix(".base_layer")
        if type(module) is not nn.Linear or ".lora_" in name or own.endswith(HEAD):
            continue
        if part_of(own, family) == "language":
            yield f"{name}.weight"
