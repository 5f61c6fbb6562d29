"""A sample as plain data for a page: its turns with images at their marks, what is trained, what each image costs.

    {"id": 3, "origin": "train.json:4", "task": "count", "source": "train", "tokens": 512, "image_tokens": 442,
     "supervised": 12,
     "turns": [{"role": "user", "parts": [{"s": "Compare "}, {"i": 0}, {"s": "<|im_end|>\\n", "m": 1}]},
               {"role": "assistant", "parts": [{"s": "The first.", "y": 1}, {"s": "<|im_end|>\\n", "m": 1, "y": 1}]}],
     "images": [{"name": "a.jpg", "h": 480, "w": 640, "rh": 364, "rw": 476, "tokens": 221, "thumb": "data:..."}],
     "ids": {"ids": [...], "y": [[3, 9]], "runs": [[0, 0], ...], "slots": [...]}}

``s`` is text (of ``cut`` characters more), ``i`` the number of an image, ``m`` marks the markup of the dialogue, ``y``
what is trained. The texts of all parts with ``y``, joined, are the decoded labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from triptych.corpus.corpus import Corpus, CorpusSample
from triptych.images.geometry import Geometry, SizedImage
from triptych.text.layout import Layout
from triptych.text.template import Encoded, Template

Card = dict[str, Any]
MOST_IDS = 800
"""Tokens of a sample whose ids a card lists, one for each image; the others are counted."""
MOST_TEXT = 8_000
"""Characters of a part of the text that a card holds; the others are counted."""


def sample_card(corpus: Corpus, template: Template, index: int, *, source: str = "", ids: bool = True) -> Card:
    """The card of a good sample.

    Args:
        corpus: whose sample it is.
        template: of the model that it is encoded for.
        index: its number there.
        source: what its split or source is called.
        ids: also list its tokens.
    """
    sample = corpus.sample(index)
    encoded = sample.encoded
    card: Card = {
        "id": index,
        "origin": str(sample.origin),
        "task": corpus.task(index),
        "source": source,
        "tokens": int(corpus.lengths.tokens[index]),
        "supervised": int(encoded.supervised.sum()),
        "turns": turns(template, encoded),
        "images": [image_fields(image, corpus.geometry) for image in sample.images],
    }
    card["image_tokens"] = sum(image["tokens"] for image in card["images"])
    if ids:
        card["ids"] = token_fields(sample)
    return card


def prompt_card(corpus: Corpus, template: Template, index: int) -> Card:
    """The card of what a model is asked: a sample without its last answer, and without its tokens."""
    card = sample_card(corpus, template, index, ids=False)
    prompt, _ = template.split_answer(corpus.encoded(index))
    asked = turns(template, prompt)
    while asked and all(part.get("m") for part in asked[-1]["parts"]):  # the header of the answer to come
        asked.pop()
    return {**card, "turns": asked}


def image_fields(image: SizedImage, geometry: Geometry) -> dict[str, Any]:
    """One image: its name, its size (h, w) in the file and (rh, rw) in the model, px, and its language tokens."""
    resized = image.resized_height, image.resized_width
    name = image.name if len(image.name) <= 300 else f"{image.name[:140]}...{image.name[-100:]}"
    fields: dict[str, Any] = {"name": name, "h": image.height, "w": image.width, "rh": resized[0], "rw": resized[1]}
    fields["tokens"] = geometry.tokens(*resized)
    natural = geometry.resized(image.height, image.width)
    if natural != resized:
        fields["natural"] = geometry.tokens(*natural)  # what it would cost without a budget of the sample
    return fields


def turns(template: Template, encoded: Encoded) -> list[dict[str, Any]]:
    """The dialogue, turn by turn; every token is in exactly one part, images aside."""
    starts = np.flatnonzero(encoded.ids == template.turn_start).tolist()
    bounds = [*starts, len(encoded.ids)]
    if not starts or starts[0]:
        bounds = [0, *bounds]
    images = {int(slot): number for number, slot in enumerate(encoded.slots.tolist())}
    return [_turn(template, encoded, start, end, images) for start, end in pairwise(bounds) if end > start]


def _turn(template: Template, encoded: Encoded, start: int, end: int, images: dict[int, int]) -> dict[str, Any]:
    markup = {template.turn_start, template.turn_end, template.vision_start, template.vision_end}
    parts: list[dict[str, Any]] = []
    ids = encoded.ids[start:end].tolist()
    trained = encoded.supervised[start:end].tolist()
    kinds = [_kind(token, start + place, images, markup, trained[place]) for place, token in enumerate(ids)]
    begin = 0
    for place in range(1, len(ids) + 1):
        if place < len(ids) and kinds[place] == kinds[begin]:
            continue
        number, special, target = kinds[begin]
        if number >= 0:
            parts.append({"i": number})
        else:
            part: dict[str, Any] = _text(template.tokenizer.decode(ids[begin:place], skip_special_tokens=False))
            parts.append(part | ({"m": 1} if special else {}) | ({"y": 1} if target else {}))
        begin = place
    role, parts = _role(parts)
    return {"role": role, "parts": parts}


def _text(text: str) -> dict[str, Any]:
    return {"s": text} if len(text) <= MOST_TEXT else {"s": text[:MOST_TEXT], "cut": len(text) - MOST_TEXT}


def _kind(token: int, place: int, images: dict[int, int], markup: set[int], trained: bool) -> tuple[int, bool, bool]:
    """(number of the image or -1, whether markup, whether trained): neighbours of one kind are one part."""
    return images.get(place, -1), token in markup, trained


def _role(parts: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """The role of a turn, and its parts with the header apart: ``<|im_start|>user\\n`` is one part of markup."""
    if len(parts) < 2 or not parts[0].get("m") or "s" not in parts[1]:
        return "", parts
    name, newline, rest = parts[1]["s"].partition("\n")
    header = {"s": f"{parts[0]['s']}{name}{newline}", "m": 1}
    remaining = [{**parts[1], "s": rest}] if rest else []
    return name, [header, *remaining, *parts[2:]]


def token_fields(sample: CorpusSample) -> dict[str, Any]:
    """The ids of a sample with one per image, spans of targets, and positions as runs.

    ``runs`` holds [token, position] where a position does not follow from the token before; the positions of an image
    are those of its first token, with height and width counted from there (see ``text/layout.py``).
    """
    encoded, layout = sample.encoded, sample.layout()
    kept = min(len(encoded.ids), MOST_IDS)
    spans = np.flatnonzero(np.diff(np.concatenate(([0], encoded.supervised[:kept].astype(np.int8), [0]))))
    positions = _first_positions(encoded, layout, sample.geometry)[:kept]
    jumps = np.flatnonzero(np.diff(positions, prepend=positions[:1] - 2) != 1).tolist()
    return {
        "ids": encoded.ids[:kept].tolist(),
        "y": spans.reshape(-1, 2).tolist(),
        "runs": [[place, int(positions[place])] for place in jumps],
        "slots": [slot for slot in encoded.slots.tolist() if slot < kept],
        "left_out": len(encoded.ids) - kept,
    }


def _first_positions(encoded: Encoded, layout: Layout, geometry: Geometry) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(U,) temporal position of each token, of an image that of its first one."""
    counts = np.ones(len(encoded.ids), np.int64)
    counts[encoded.slots] = layout.grids.prod(axis=1) // geometry.merge_size**2
    firsts = np.cumsum(counts) - counts
    return np.asarray(layout.position_ids[0][firsts], np.int64)


def vocabulary(template: Template, cards: Sequence[Card]) -> dict[int, str]:
    """The text of each id that the cards list."""
    used = sorted({token for card in cards for token in card.get("ids", {}).get("ids", ())})
    return {token: template.tokenizer.decode([token], skip_special_tokens=False) for token in used}
