"""Answer prompts in batches with the model's own ``generate``: padded on the left, greedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, PreTrainedModel

from triptych.data.layout import Layout
from triptych.data.template import Template
from triptych.model import PixelNormalizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """One sample up to the answer that is asked for."""

    index: int
    """Its number in the corpus."""
    layout: Layout
    pixels: NDArray[np.uint8]
    """(P, 3 * p * p)"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model wrote."""

    ids: list[int]
    """Without the end mark."""
    finished: bool
    """False if the answer was cut off at the longest length allowed."""


@torch.inference_mode()
def answer(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    template: Template,
    normalizer: PixelNormalizer,
    *,
    max_new_tokens: int,
) -> list[Answer]:
    """Answer ``prompts`` together, each as if alone, taking the likeliest token every time."""
    ids = [torch.from_numpy(prompt.layout.input_ids) for prompt in prompts]
    longest = max(map(len, ids))
    # Ids under the padding are never attended to; any id that is no picture will do.
    input_ids = torch.full((len(ids), longest), template.turn_end)
    attention = torch.zeros((len(ids), longest), dtype=torch.long)
    for row, tokens in enumerate(ids):
        input_ids[row, longest - len(tokens) :] = tokens
        attention[row, longest - len(tokens) :] = 1
    device = model.device
    inputs = {"input_ids": input_ids.to(device), "attention_mask": attention.to(device)}
    pixels = np.concatenate([prompt.pixels for prompt in prompts])
    if len(pixels):
        grids = np.concatenate([prompt.layout.grids for prompt in prompts])
        inputs["pixel_values"] = normalizer(torch.from_numpy(pixels).to(device))
        inputs["image_grid_thw"] = torch.from_numpy(grids).to(device)
        # Tells the model which tokens are pictures, for their positions.
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == template.image_pad).int()
    greedy = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=template.turn_end,
        pad_token_id=template.turn_end,
    )
    written = model.generate(**inputs, generation_config=greedy)[:, longest:].tolist()  # type: ignore[operator]
    return [_until_end(tokens, template.turn_end) for tokens in written]


def _until_end(tokens: list[int], end: int) -> Answer:
    finished = end in tokens
    return Answer(tokens[: tokens.index(end)] if finished else tokens, finished)
