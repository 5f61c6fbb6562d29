"""Elements of JSON files: parsed with some leniency, lists of records taken apart, and defects put into words."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import orjson

from triptych.errors import Origin, Problem
from triptych.sources.records import Record, json_type
from triptych.sources.text_files.text import not_utf8

_TURN_KEYS = ({"role", "content"}, {"from", "value"})
"""Keys of the turns of a conversation that stands without a record around it, as `messages` and `conversations`."""


def loads(text: bytes) -> Any:
    """A value; ``NaN`` and ``Infinity``, which Python writes for what is not there, are null.

    Raises:
        orjson.JSONDecodeError: if it is not valid JSON for another reason.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        found = _with_nan(text) if b"NaN" in text or b"Infinity" in text else ()
        if not found:  # another defect: the first error says more
            raise
        return found[0]


def _with_nan(text: bytes) -> tuple[Any, ...]:
    """The value of a text, its ``NaN`` and ``Infinity`` as null; nothing if it has another defect."""
    try:
        value = json.loads(text.decode(), parse_constant=lambda _: None)
        orjson.dumps(value)  # half a character is refused only here
    except (ValueError, TypeError, RecursionError):
        return ()
    return (value,)


def parses(text: bytes) -> bool:
    """Whether a text is one JSON value."""
    try:
        loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def records_of(element: Any, origin: Origin) -> Sequence[Record | Problem]:
    """The records of one element: itself, or those of a list; a list of turns is one conversation."""
    if isinstance(element, dict):
        return [Record(element, origin)]
    if not isinstance(element, list) or not any(isinstance(item, dict) for item in element):
        return [_no_record(element, origin)]
    for keys, name in zip(_TURN_KEYS, ("messages", "conversations"), strict=True):
        if all(isinstance(item, dict) and keys <= item.keys() for item in element):
            return [Record({name: element}, origin)]
    inside = [Origin(origin.path, origin.line, origin.at, number) for number in range(1, len(element) + 1)]
    return [
        Record(item, place) if isinstance(item, dict) else _no_record(item, place)
        for item, place in zip(element, inside, strict=True)
    ]


def _no_record(element: Any, origin: Origin) -> Problem:
    found = "an empty list" if element == [] else json_type(element)
    return Problem("bad-shape", origin, f"a sample is a JSON object, this is {found}")


def reason(error: orjson.JSONDecodeError, text: bytes, path: str, *, of_array: bool = False) -> str:
    """Why a text, a line or what stands between two commas of an array, is not valid JSON; and what to do."""
    body = text.strip()
    # The parser's words for bytes that are not UTF-8 speak of surrogates.
    if "UTF-8" in error.msg:
        return not_utf8(text, path)
    if "surrogate" in error.msg:
        return "half a character, such as half an emoji (\\ud83d without what follows): the text was cut inside of it"
    if body.endswith(b",") and parses(body[:-1]):
        return f"a comma stands after the object: sed 's/,[[:space:]]*$//' {path!r} > NEW"
    if "after document" in error.msg and of_array:
        return f"a comma is missing after {body[: error.pos][-40:].decode(errors='replace').strip()!r}"
    if "after document" in error.msg:
        return f"several values on one line; write one on each: jq -c . {path!r} > NEW"
    if re.match(rb"[{\[]\s*[{\[]?\s*'", body):
        return "it is Python's way to print a dictionary, with single quotes; write it with json.dumps"
    return error.msg


def wrong_form(begin: bytes, path: str) -> str | None:
    """What is wrong with a file of objects as a whole, with the remedy; None if its first lines are as they should be.

    Args:
        begin: its first bytes, from the first object on.
        path: of the file; for messages.
    """
    line, _, rest = begin.partition(b"\n")
    if parses(line):
        return None
    following = rest.lstrip().partition(b"\n")[0]
    if line.rstrip().endswith(b",") and parses(line.rstrip()[:-1]):
        if following.strip() and parses(following):
            return None  # only this line has one
        return f"a comma stands after each line; remove them: sed 's/,[[:space:]]*$//' {path!r} > NEW"
    if following and parses(following):
        return None
    try:
        line.decode()
        text = begin.decode("utf-8", "ignore")  # it may be cut inside a character
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    behind = text[end:].lstrip()
    if behind.startswith("{"):
        return f"objects follow each other without being one on each line; write them so: jq -c . {path!r} > NEW"
    if behind.startswith(",") and behind[1:].lstrip().startswith("{"):
        return "objects with commas between them need brackets around: put [ in front of the first, ] after the last"
    return None
