"""Lists of turns, and of questions with their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from triptych.sources.records import json_type
from triptych.sources.references import is_blank, is_empty, written_value
from triptych.text.shapes.found import ShapeError

_SPEAKERS = (("user", "assistant"), ("human", "gpt"), ("question", "answer"), ("query", "response"))
"""Keys of an element that holds a question and its answer."""


def turn_list(key: str, value: Any) -> list[Any]:
    """A list of turns, also one written as a string."""
    if isinstance(value, str):
        value = written_value(value)
    if isinstance(value, Mapping):
        raise ShapeError(f"`{key}` is a list of turns, this is an object; write [...] around it")
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else "a string" if value is None else json_type(value)
        raise ShapeError(f"`{key}` is a list of turns, this is {found}")
    return value


def flattened(turns: list[Any], key: str) -> list[Any]:
    """Turns where some elements may hold a question with its answer."""
    for turn in turns:
        if not isinstance(turn, dict) or ("role" not in turn and "from" not in turn):
            return of_pairs(turns, key) or turns
    return turns


def of_pairs(elements: Sequence[Any], key: str) -> list[Any] | None:
    """The turns of ``[{"user", "assistant"}, ...]``; None if the elements are none of these."""
    turns: list[Any] = []
    for number, element in enumerate(elements, 1):
        if is_empty(element):
            continue  # a table pads lists
        if not isinstance(element, Mapping):
            return None
        names = next((pair for pair in _SPEAKERS if set(pair) <= element.keys()), None)
        if names is None:
            return None
        system = element.get("system")
        if not is_blank(system):
            if turns:
                raise ShapeError(f"`system` in element {number} of `{key}`: only the first may have one")
            turns.append({"role": "system", "content": system})
        rest = {name: value for name, value in element.items() if name not in (*names, "system")}
        turns.append({**rest, "role": "user", "content": element[names[0]]})
        turns.append({"role": "assistant", "content": element[names[1]]})
    return turns or None
