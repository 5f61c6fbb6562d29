"""Scores of what an answer means: a letter of several options, a number, the fields of a JSON object, boxes."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from triptych.scoring.texts import Answered

Box = tuple[float, float, float, float]
"""Left, top, right, bottom"""

_ALONE = re.compile(r"\W*([A-Za-z])\W*")
_SAID = re.compile(
    r"(?i:answer|option|choice|choose|答案|选项|选择|选)(?i:\s+is)?\W{0,4}(?:是|为)?\W{0,4}([A-Z])(?![A-Za-z])"
)
_FIRST = re.compile(r"\s*[(（]?([A-Z])[).:：、，,）]")
_IN_BRACKETS = re.compile(r"[(（]([A-Z])[)）]")
_NUMBER = re.compile(r"[-+−]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+−]?\.\d+")
_PLAIN = r"\s*(-?\d+(?:\.\d+)?)\s*"
_FOUR = re.compile(rf"[\[(]{_PLAIN},{_PLAIN}(?:,|\)\s*,\s*\(){_PLAIN},{_PLAIN}[\])]")


def choice(answer: Answered) -> float | None:
    """Whether the letter of the option is the expected one; None where the expected answer names no letter."""
    wanted = letter(answer.reference)
    return None if wanted is None else float(letter(answer.prediction) == wanted)


def letter(text: str) -> str | None:
    """The option that an answer names: ``B``, ``(b)``, ``B. a cat``, ``The answer is B``; None if it names none."""
    alone = _ALONE.fullmatch(text)
    if alone:
        return alone[1].upper()
    said = _SAID.findall(text)
    if said:
        return str(said[-1]).upper()
    first = _FIRST.match(text)
    if first:
        return first[1]
    named = set(_IN_BRACKETS.findall(text))
    return str(named.pop()) if len(named) == 1 else None


def number(tolerance: float, answer: Answered) -> float:
    """Whether the last number of both is equal, within a relative tolerance (0.05 is ChartQA's relaxed accuracy).

    Where the expected answer holds no number, both are compared as text in lower case.
    """
    wanted = last_number(answer.reference)
    if wanted is None:
        return float(answer.prediction.strip().casefold() == answer.reference.strip().casefold())
    found = last_number(answer.prediction)
    if found is None:
        return 0.0
    return float(math.isclose(found, wanted, rel_tol=0, abs_tol=max(tolerance * abs(wanted), 1e-9 * abs(wanted))))


def last_number(text: str) -> float | None:
    """The last number of a text; commas between thousands are read over."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "").replace("−", "-")) if found else None


def json_fields(answer: Answered) -> float | None:
    """F1 of the fields of a JSON object: a field counts if its place and its value are equal.

    None where the expected answer holds no JSON.
    """
    wanted = _json(answer.reference)
    if wanted is None:
        return None
    found = _json(answer.prediction)
    if found is None:
        return 0.0
    fields, expected = Counter(_leaves(found)), Counter(_leaves(wanted))
    common = sum((fields & expected).values())
    return 2 * common / (sum(fields.values()) + sum(expected.values())) if fields or expected else 1.0


def iou(threshold: float | None, answer: Answered) -> float | None:
    """Mean overlap (intersection over union) of boxes, each matched to one; boxes too many or too few count as 0.

    Args:
        threshold: with one, the share of boxes that overlap at least so much.
        answer: boxes as ``[x1, y1, x2, y2]`` or ``(x1, y1), (x2, y2)``.

    Returns:
        None where the expected answer holds no box.
    """
    wanted = boxes(answer.reference)
    if not wanted:
        return None
    found = boxes(answer.prediction)
    pairs = sorted(((overlap(one, two), i, j) for i, one in enumerate(found) for j, two in enumerate(wanted)))
    used_found: set[int] = set()
    used_wanted: set[int] = set()
    total = 0.0
    for value, i, j in reversed(pairs):
        if i not in used_found and j not in used_wanted:
            used_found.add(i)
            used_wanted.add(j)
            total += value if threshold is None else float(value >= threshold)
    return total / max(len(found), len(wanted))


def boxes(text: str) -> list[Box]:
    """The boxes that a text names, in order."""
    found = []
    for match in _FOUR.finditer(text):
        x1, y1, x2, y2 = (float(value) for value in match.groups())
        found.append((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))
    return found


def overlap(one: Box, two: Box) -> float:
    """Intersection over union."""
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, two))
    return shared / (areas - shared) if areas > shared else float(one == two)


def _json(text: str) -> Any:
    """The first JSON object or list of a text, also inside a code block; None if there is none."""
    decoder = json.JSONDecoder()
    for place, sign in enumerate(text):
        if sign in "{[":
            try:
                return decoder.raw_decode(text, place)[0]
            except (ValueError, RecursionError):
                continue
    return None


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """(place, value) of each field; numbers are equal as numbers, texts without white space at their ends."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{place}.{key}")
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from _leaves(item, f"{place}[{index}]")
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        yield place, value.strip() if isinstance(value, str) else json.dumps(value)
    else:
        yield place, repr(float(value))
