"""What transformers and Pillow themselves make of an image or a conversation; nothing of Triptych is called here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

MARK = "<image>"


@cache
def processor(min_pixels: int, max_pixels: int) -> Qwen2VLImageProcessorPil:
    """The image processor of the family under other limits."""
    return Qwen2VLImageProcessorPil(size={"shortest_edge": min_pixels, "longest_edge": max_pixels})


def rgb(path: Path) -> Image.Image:
    """The image as people see it: upright, on white, 16 bits by their high byte."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64) // 256
        return Image.fromarray(np.repeat(values[..., None], 3, axis=-1).astype(np.uint8))
    if image.mode in ("RGBA", "LA") or "transparency" in image.info:
        values = np.asarray(image.convert("RGBA")).astype(np.int64)
        colour, alpha = values[..., :3], values[..., 3:]
        return Image.fromarray(((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8))
    return image.convert("RGB")


@cache
def tokenizer(model: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, with the chat template saved in it."""
    return AutoTokenizer.from_pretrained(model)


def messages(turns: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Turns with marks in the form that the chat templates of the family take."""
    return [{"role": role, "content": _parts(text)} for role, text in turns]


def _parts(text: str) -> list[dict[str, str]]:
    first, *rest = text.split(MARK)
    parts = [{"type": "text", "text": first}]
    for piece in rest:
        parts += [{"type": "image"}, {"type": "text", "text": piece}]
    return parts


def whole_ids(model: Path, turns: Sequence[tuple[str, str]], counts: Sequence[int]) -> list[int]:
    """The conversation rendered and tokenized in one piece, each image expanded to its tokens."""
    return expanded(model, _tokenized(model, rendered(model, turns)), counts)


def generated_ids(
    model: Path, turns: Sequence[tuple[str, str]], counts: Sequence[int]
) -> tuple[list[int], list[tuple[str, list[int]]]]:
    """The conversation as generation meets it: rendered up to each answer's header, then the answer apart.

    Returns:
        All ids, and in order the answers with their end mark: (text, ids).
    """
    ids: list[int] = []
    answers: list[tuple[str, list[int]]] = []
    done = ""
    for number, (role, text) in enumerate(turns):
        if role != "assistant":
            continue
        prompt = rendered(model, turns[:number], add_generation_prompt=True)
        assert prompt.startswith(done)
        ids += _tokenized(model, prompt[len(done) :])
        answer = [*_tokenized(model, text), *_tokenized(model, "<|im_end|>\n")]
        ids += answer
        answers.append((text, answer))
        done = f"{prompt}{text}<|im_end|>\n"
        assert done == rendered(model, turns[: number + 1])
    return expanded(model, ids, counts), answers


def rendered(model: Path, turns: Sequence[tuple[str, str]], *, add_generation_prompt: bool = False) -> str:
    return tokenizer(model).apply_chat_template(
        messages(turns), tokenize=False, add_generation_prompt=add_generation_prompt
    )


def _tokenized(model: Path, text: str) -> list[int]:
    return tokenizer(model)(text, add_special_tokens=False)["input_ids"]


def expanded(model: Path, ids: Sequence[int], counts: Sequence[int]) -> list[int]:
    pad = tokenizer(model).convert_tokens_to_ids("<|image_pad|>")
    left = iter(counts)
    expanded = [number for number in ids for _ in range(next(left) if number == pad else 1)]
    assert next(left, None) is None, "more images than places for them"
    return expanded


def write_records(folder: Path, records: Sequence[dict[str, Any]]) -> Path:
    """A data file of ``records``."""
    path = folder / "data.json"
    path.write_text(json.dumps(list(records), ensure_ascii=False), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What ``triptych encode`` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(start, end) of every unbroken run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
