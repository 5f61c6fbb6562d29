"""Answer prompts with the model's own ``generate``: in batches, padded on the left, or one by one as it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from triptych.model.loading import PixelNormalizer
from triptych.text.layout import Layout
from triptych.text.template import Template


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
    inputs = _inputs(model, prompts, template, normalizer)
    longest = inputs["input_ids"].shape[1]
    config = _generation(template, Sampling(max_new_tokens))
    written = model.generate(**inputs, generation_config=config)[:, longest:].tolist()  # type: ignore[operator]
    return [_until_end(tokens, template.turn_end) for tokens in written]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of an answer are chosen."""

    max_new_tokens: int
    """Longest answer"""
    temperature: float = 0.0
    """0 for the likeliest token every time, else the temperature that tokens are drawn at"""


def stream(
    model: PreTrainedModel,
    prompt: Prompt,
    template: Template,
    normalizer: PixelNormalizer,
    sampling: Sampling,
    write: Callable[[str], None],
) -> Answer:
    """Answer one prompt and hand on its text in pieces as it is written; together they are the decoded answer.

    An interrupt (Ctrl-C) ends the answer there.

    Args:
        model: the model.
        prompt: what was said so far.
        template: the model's markup.
        normalizer: on the model's device.
        sampling: how long the answer may be, and how its tokens are chosen.
        write: called with every piece.
    """
    pieces = _Pieces(template, write)
    config = _generation(template, sampling)
    try:
        with torch.inference_mode():
            inputs = _inputs(model, [prompt], template, normalizer)
            model.generate(**inputs, generation_config=config, streamer=pieces)  # type: ignore[operator]
    except KeyboardInterrupt:
        pieces.end()
    return _until_end(pieces.ids, template.turn_end)


class _Pieces(BaseStreamer):
    """Text of an answer in pieces that never end inside a character."""

    def __init__(self, template: Template, write: Callable[[str], None]) -> None:
        self.ids: list[int] = []
        self.template = template
        self.write = write
        self._prompt_is_next = True
        self._waiting: list[int] = []
        """The last ids, whose text is not handed on yet."""

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, then token after token."""
        if self._prompt_is_next:
            self._prompt_is_next = False
            return
        ids = value.flatten().tolist()
        self.ids += ids
        self._waiting += ids
        # Tokens are bytes: where a character is complete, what follows decodes alone to what it is in the whole.
        text = self.template.decode(self._waiting)
        if not text.endswith("\ufffd"):
            self._hand_on(text)

    def end(self) -> None:
        """Hand on what is left, also if the answer stopped inside a character."""
        self._hand_on(self.template.decode(self._waiting))

    def _hand_on(self, text: str) -> None:
        self._waiting = []  # first, for an interrupt while the piece is written must not bring it twice
        if text:
            self.write(text)


def _inputs(
    model: PreTrainedModel, prompts: Sequence[Prompt], template: Template, normalizer: PixelNormalizer
) -> dict[str, torch.Tensor]:
    """What ``generate`` takes: prompts padded on the left to one length, their images end to end."""
    ids = [torch.from_numpy(prompt.layout.input_ids) for prompt in prompts]
    longest = max(map(len, ids))
    # Ids under the padding are never attended to; any id that is no image will do.
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
        # Tells the model which tokens are images, for their positions.
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == template.image_pad).int()
    return inputs


def _generation(template: Template, sampling: Sampling) -> GenerationConfig:
    # What is not said here, `generate` takes from the model's own settings; a temperature draws from all tokens.
    drawing = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(  # type: ignore[no-untyped-call]
        **(drawing if sampling.temperature else {"do_sample": False}),
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=template.turn_end,
        pad_token_id=template.turn_end,
        # The model's own generation config would fill in what is not said, and Qwen2.5-VL's punishes repetition.
        repetition_penalty=1.0,
    )


def _until_end(tokens: list[int], end: int) -> Answer:
    finished = end in tokens
    return Answer(tokens[: tokens.index(end)] if finished else tokens, finished)
