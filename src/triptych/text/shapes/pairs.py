"""A question and its answer under two keys, with what may stand beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triptych.sources.records import json_type
from triptych.sources.references import is_blank, is_empty, written_value
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
        if not is_blank(data.get(question)) and not is_blank(data.get(answer)) and question != answer:
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
    if not columns:
        _refuse_other_answers(data, question, answer)
    keys = {key for pair in found for key in pair}
    turns = _history(data, column("history"), keys)
    asked = _side(data[question], question, "user")
    more = column("input")
    if question == column("instruction") and not is_blank(data.get(more)):
        if not isinstance(data[more], str) or not isinstance(data[question], str) or len(asked) > 1:
            raise ShapeError(f"`{question}` and `{more}` beside it are strings, one of them is not")
        asked = [{"role": "user", "content": f"{data[question]}\n{data[more]}"}]
    elif more not in keys:
        _refuse_other_text(data, question, more)
    keys.add(more)
    return Dialogue([*turns, *asked, *_side(data[answer], answer, "assistant")], keys)


def _refuse_options(data: Mapping[str, Any], question: str) -> None:
    for key in _OPTIONS:
        if not is_empty(data.get(key)) and question != "instruction":
            advice = f"choice: {{question: {question}, options: {key if key != 'A' else '[A, B, C, D]'}}}"
            raise ShapeError(f"`{key}` holds the options of a question, which the model is to see: write `{advice}`")


def _refuse_other_answers(data: Mapping[str, Any], question: str, answer: str) -> None:
    """Refuse a second answer that is another one: which of the two is to be learned, only the user knows."""
    for _, key in PAIRS:
        value = data.get(key)
        if key != answer and isinstance(value, str) and not is_blank(value) and value != data[answer]:
            raise ShapeError(
                f"`{answer}` and `{key}` may both answer `{question}`; leave one out: `ignore: [{key}]` or "
                f"`ignore: [{answer}]` in the source"
            )


def _refuse_other_text(data: Mapping[str, Any], question: str, more: str) -> None:
    """Refuse a text that belongs to a question and would not be seen."""
    for key in (more, "context"):
        value = data.get(key)
        if isinstance(value, str) and not is_blank(value) and value != data[question]:
            raise ShapeError(
                f"`{key}` beside `{question}` is not read; write it into the question where the model is to see it, "
                f"or `ignore: [{key}]` in the source"
            )


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


def _is_printed(text: str) -> bool:
    """Whether a list in a text is printed by Python, as tables have it; one that is JSON may be what is to be said."""
    return text.lstrip().startswith("['")


def _side(value: Any, key: str, role: str) -> list[Any]:
    """A question or an answer: text, or turns."""
    if isinstance(value, Mapping):
        return [{"role": role, **value}]
    if isinstance(value, str):
        inner = written_value(value)
        if isinstance(inner, list) and _is_printed(value) and all(isinstance(item, str) for item in inner):
            return _side(inner, key, role)
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
