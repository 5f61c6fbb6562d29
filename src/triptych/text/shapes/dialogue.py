"""Find the dialogue of a record, or say what it has instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triptych.sources.records import Source
from triptych.sources.references import is_blank, is_empty
from triptych.text.shapes.choice import choice
from triptych.text.shapes.found import Dialogue, ShapeError
from triptych.text.shapes.pairs import PAIRS, pair
from triptych.text.shapes.turn_lists import flattened, of_pairs, turn_list

DIALOGUES = ("messages", "conversations", "conversation")
_QUESTIONS = ("problem", "user", "human", "text_input", "source", "ask")
_ANSWERS = ("answer_text", "label", "target", "solution", "assistant", "gpt", "caption", "text", "reply", "text_output")
"""Further keys of questions and answers, for advice."""


def find_dialogue(data: Mapping[str, Any], source: Source) -> Dialogue:
    """The turns of a record.

    Raises:
        ShapeError: if it has none, or two that differ.
    """
    if source.choice is not None:
        return choice(data, source.choice)
    columns = source.columns
    found: list[tuple[str, list[Any]]] = []
    for name in DIALOGUES:
        key = str(columns.get(name, name)) if columns else name
        value = data.get(key)
        if value is not None and not is_empty(value):
            found.append((key, turn_list(key, value)))
    if found:
        first, turns = found[0]
        for key, other in found[1:]:
            if other != turns:
                raise ShapeError(
                    f"`{first}` and `{key}` hold dialogues that differ, at least in how they are written; keep one of "
                    f"them: `ignore: [{key}]` or `ignore: [{first}]` in the source"
                )
        return Dialogue(flattened(turns, first), {key for key, _ in found})
    return _texts(data, str(columns.get("texts", "texts"))) or pair(data, columns) or _nothing(data, columns)


def _texts(data: Mapping[str, Any], key: str) -> Dialogue | None:
    value = data.get(key)
    if is_empty(value):
        return None
    elements = turn_list(key, value)
    turns = of_pairs(elements, key)
    if turns is None:
        if any(isinstance(element, str) for element in elements):
            raise ShapeError(
                f"`{key}` is a list of texts between images, without questions and answers; Triptych trains on "
                'dialogues: write it as `messages`, the text to learn as the content of an "assistant" turn'
            )
        raise ShapeError(f'`{key}` is a list of {{"user", "assistant"}}; its elements have other keys')
    return Dialogue(turns, {key})


def _nothing(data: Mapping[str, Any], columns: Mapping[str, Any]) -> Dialogue:
    """Say what a record has instead of a dialogue."""
    shown = ", ".join(f"`{key[:40]}`" for key in sorted(map(str, data))[:15])
    keys = f"the keys are {shown}" if shown else "it has no key"
    for name in DIALOGUES:
        if data.get(str(columns.get(name, name))) == []:
            raise ShapeError(f"`{columns.get(name, name)}` is a list of turns, this is an empty list")
    for names in PAIRS:
        question, answer = (str(columns.get(name, name)) for name in names)
        if not is_blank(data.get(question)) and answer in data:
            raise ShapeError(f"`{question}` has no answer: `{answer}` is empty", "empty-answer")
    advice = _advice_on_pair(data, columns) or "docs/data-format.md shows every shape"
    if any({role, content} <= data.keys() for role, content in (("role", "content"), ("from", "value"))):
        advice = 'it is a turn without a record around it; write one object for each dialogue: {"messages": [turns]}'
    for key, value in data.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            first = value[0]
            if ("role" in first or "from" in first) or of_pairs(value[:1], key):
                advice = f"if `{key}` holds the turns, write `columns: {{messages: {key}}}`"
                break
            if len(data) <= 5 and key in ("data", "samples", "records", "items", "train", "annotations", "questions"):
                advice = f"if `{key}` holds the records, save that list as the file"
    raise ShapeError(f"neither `conversations` nor `messages`, nor a question and its answer; {keys}; {advice}")


def _advice_on_pair(data: Mapping[str, Any], columns: Mapping[str, Any]) -> str | None:
    """What to write where a question and its answer are under keys that are not taken together."""
    asking = [str(columns.get(one, one)) for one, _ in PAIRS] + list(_QUESTIONS)
    answering = [str(columns.get(one, one)) for _, one in PAIRS]
    for question in dict.fromkeys(asking):
        near = (*answering, f"{question}s", *(f"{name}s" for name in answering), *_ANSWERS)
        answer = next((key for key in near if key != question and not is_blank(data.get(key))), None)
        if isinstance(data.get(question), str | list) and not is_blank(data[question]) and answer is not None:
            return f"if `{answer}` answers `{question}`, write `columns: {{question: {question}, answer: {answer}}}`"
    return None
