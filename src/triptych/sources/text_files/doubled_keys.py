"""The same key twice in a JSON object: parsers keep the last one, and what is under the first would be lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np


class DoubledKeyError(ValueError):
    """An object that gives one key two values; the message names the key."""


def may_be_doubled(text: bytes, values: Sequence[Any]) -> bool:
    """Whether a JSON text may write more keys than the values hold that were read from it: quick, never a false no.

    Args:
        text: one or several values.
        values: what a parser read.
    """
    data = np.frombuffer(text, np.uint8)
    colons = np.flatnonzero(data == 0x3A)
    colons = colons[colons > 2]  # the first key stands after a brace, in quotes
    before = data[colons - 1]
    blank = before <= 0x20
    if np.any(blank & ((before != 0x20) | (data[colons - 2] <= 0x20))):
        return True  # more than one blank between a key and its colon, or another one: rare, so not counted
    quotes = colons - 1 - blank
    escaped = (data[quotes - 1] == 0x5C) & (data[quotes - 2] != 0x5C)  # a quote within a text
    written = np.count_nonzero((data[quotes] == 0x22) & ~escaped)
    return bool(written > _keys(values))


def refuse_doubled(text: bytes) -> None:
    """Do nothing where each object of a valid JSON text has each key once, or twice with the same value.

    Raises:
        DoubledKeyError: with the key.
    """
    try:
        json.loads(text.decode(), object_pairs_hook=_unique)
    except RecursionError:
        return


def _keys(values: Sequence[Any]) -> int:
    """Keys of all objects, at any depth."""
    count = 0
    left: list[Any] = list(values)
    while left:
        value = left.pop()
        if type(value) is dict:
            count += len(value)
            left += value.values()
        elif type(value) is list:
            left += value
    return count


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if found[key] != value:
                raise DoubledKeyError(f"`{key[:60]}` is there twice in one object, with two values; keep one of them")
    return found
