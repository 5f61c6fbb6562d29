"""A question and its answer under two keys, with what may stand beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triptych.sources.records import json_type
from triptych.sources.references import is_empty, written_value
from triptych.text.shapes.found import Dialogue, ShapeError
from triptych.text.shapes.turn_lists import of_pairs, turn_list

PAIRS = (
    ("prompt", "completion"),
    ("query", "response"),
    ("question", "answer"),
    ("instruction", "output"),
    ("prompt", "response"),
    ("input", "output"),
)
"""Keys of a question and its answer."""
_OPTIONS = ("options", "choices", "choice_list", "A")


def pair(data: Mapping[str, Any], columns: Mapping[str, Any]) -> Dialogue | None:
    """A question and its answer under two keys."""

    def column(name: str) -> str:
        return str(columns.get(name, name))

    found: list[tuple[str, str]] = []
    for names in PAIRS:
        question, answer = map(column, names)
        if not is_empty(data.get(question)) and not is_empty(data.get(answer)) and question != answer:
            found.append((question, answer))
    if not found:
        return None
    question, answer = found[0]
    if len(found) > 1 and (found[0][0], found[1][0]) == (column("instruction"), column("input")):
        found = found[:1]  # alpaca's input belongs to its instruction
    for other in found[1:]:
        if any(data[one] != data[two] for one, two in zip(found[0], other, strict=True)):
            raise ShapeError(
                f"`{question}` with `{answer}` and `{other[0]}` with `{other[1]}` are different dialogues; keep one"
            )
    _refuse_options(data, question)
    keys = {key for pair in found for key in pair}
    turns = _history(data, column("history"), keys)
    asked = _side(data[question], question, "user")
    more = column("input")
    if question == column("instruction") and not is_empty(data.get(more)):
        if not isinstance(data[more], str) or not isinstance(data[question], str) or len(asked) > 1:
            raise ShapeError(f"`{question}` and `{more}` beside it are strings, one of them is not")
        asked = [{"role": "user", "content": f"{data[question]}\n{data[more]}"}]
    keys.add(more)
    return Dialogue([*turns, *asked, *_side(data[answer], answer, "assistant")], keys)


def _refuse_options(data: Mapping[str, Any], question: str) -> None:
    for key in _OPTIONS:
        if not is_empty(data.get(key)) and question != "instruction":
            advice = f"choice: {{question: {question}, options: {key if key != 'A' else '[A, B, C, D]'}}}"
            raise ShapeError(f"`{key}` holds the options of a question, which the model is to see: write `{advice}`")


def _history(data: Mapping[str, Any], key: str, keys: set[str]) -> list[Any]:
    """Earlier turns: ``[[question, answer], ...]`` or turns."""
    keys.add(key)
    value = data.get(key)
    if is_empty(value):
        return []
    turns: list[Any] = []
    for element in turn_list(key, value):
        if isinstance(element, list) and len(element) == 2 and all(isinstance(item, str) for item in element):
            turns += [{"role": "user", "content": element[0]}, {"role": "assistant", "content": element[1]}]
        elif isinstance(element, Mapping):
            turns += of_pairs([element], key) or [element]
        else:
            raise ShapeError(f"`{key}` is a list of [question, answer], an element is {json_type(element)}")
    return turns


def _side(value: Any, key: str, role: str) -> list[Any]:
    """A question or an answer: text, or turns."""
    if isinstance(value, Mapping):
        return [{"role": role, **value}]
    if isinstance(value, str):
        inner = written_value(value)
        if isinstance(inner, list) and len(inner) == 1 and isinstance(inner[0], str):
            return [{"role": role, "content": inner[0]}]
        is_turns = isinstance(inner, list) and all(isinstance(item, Mapping) for item in inner)
        if not (is_turns and any("role" in item or "from" in item for item in inner)):
            return [{"role": role, "content": value}]
        value = inner
    if isinstance(value, list):
        if all(isinstance(item, Mapping) for item in value):
            if any("role" in item or "from" in item for item in value):
                return list(value)
            return [{"role": role, "content": value}]
        if len(value) == 1 and isinstance(value[0], str):
            return [{"role": role, "content": value[0]}]
        raise ShapeError(f"`{key}` is a list of {len(value)}; write the one that is to be learned")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [{"role": role, "content": str(value)}]
    raise ShapeError(f"`{key}` is a string, this is {json_type(value)}; write the words")
