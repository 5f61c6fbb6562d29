"""Multiple choice: the question with its options, and the letter of the right one."""

from __future__ import annotations

import reprlib
import string
from collections.abc import Mapping
from typing import Any

from triptych.sources.records import json_type
from triptych.sources.references import is_blank, written_value
from triptych.text.shapes.found import Dialogue, ShapeError


def choice(data: Mapping[str, Any], names: Mapping[str, Any]) -> Dialogue:
    """Multiple choice: the question with its options, and the letter of the right one."""
    question_key, answer_key = (str(names.get(name, name)) for name in ("question", "answer"))
    question = data.get(question_key)
    if not isinstance(question, str) or is_blank(question):
        raise ShapeError(f"`{question_key}` is the text of the question, this is {_found(question)}")
    options, keys = _options(data, names.get("options", "options"))
    letters = list(options)
    lines = [f"{_label(names, letter)}{option}" for letter, option in options.items()]
    instruction = names.get("instruction") or ""
    text = "\n".join([question, *lines, *([str(instruction)] if instruction else [])])
    answer = data.get(answer_key)
    letter = _letter(answer, options)
    if letter is None:
        shown = reprlib.repr(answer) if isinstance(answer, str | int | float) else json_type(answer)
        shown = "empty" if is_blank(answer) else shown
        raise ShapeError(
            f"`{answer_key}` is {shown}: neither a letter of {letters[0]} to {letters[-1]}, nor an option, nor its "
            "number from 0"
        )
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": letter}]
    return Dialogue(turns, {question_key, answer_key, *keys})


def _found(value: Any) -> str:
    return "empty" if isinstance(value, str) else json_type(value)


def _label(names: Mapping[str, Any], letter: str) -> str:
    return str(names.get("letters", "A. ")).replace("A", letter, 1)


def _options(data: Mapping[str, Any], key: Any) -> tuple[dict[str, str], list[str]]:
    """Letter -> option, and the keys they were read from; options may be a list, an object, or keys of their own."""
    if isinstance(key, list | tuple):
        options = {str(name): data[name] for name in key if not is_blank(data.get(name))}
        keys = [str(name) for name in key]
        if any(len(name) > 1 for name in options):
            options = dict(zip(string.ascii_uppercase, options.values(), strict=False))
    else:
        value = data.get(key)
        value = written_value(value) if isinstance(value, str) else value
        keys = [str(key)]
        if isinstance(value, Mapping):
            options = {str(name): item for name, item in value.items() if not is_blank(item)}
        elif isinstance(value, list | tuple):
            options = dict(zip(string.ascii_uppercase, value, strict=False))
            if len(value) > len(options):
                raise ShapeError(f"`{key}` has {len(value)} options, more than there are letters")
        else:
            raise ShapeError(f"`{key}` is a list of options, this is {json_type(value)}")
    if len(options) < 2:
        raise ShapeError(f"{', '.join(f'`{name}`' for name in keys)}: a choice needs two options or more")
    for letter, option in options.items():
        if isinstance(option, bool) or not isinstance(option, str | int | float):
            raise ShapeError(f"option {letter} is a string, this is {json_type(option)}")
    return {letter: str(option) for letter, option in options.items()}, keys


def _letter(answer: Any, options: Mapping[str, str]) -> str | None:
    """The letter that an answer names: by letter, by the option's text, or by its number from 0."""
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, int) and not isinstance(answer, bool):
        return list(options)[answer] if 0 <= answer < len(options) else None
    if not isinstance(answer, str):
        return None
    bare = answer.strip().strip("().").strip()
    same = [letter for letter, option in options.items() if option.strip() == answer.strip()]
    if bare in options and (not same or same == [bare]):
        return bare
    if len(same) == 1 and bare not in options:
        return same[0]
    if not same and bare.isdecimal() and int(bare) < len(options):
        return list(options)[int(bare)]
    return None
