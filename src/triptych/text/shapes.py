"""The one normaliser of record shapes: whatever a record calls its dialogue, out comes one list of turns.

messages | conversations | conversation          turns, as objects
prompt + completion                              text or turns each
texts                                            [{"user", "assistant"}, ...]
query + response (+ history), question + answer, instruction (+ input) + output
choice: question, options and answer             where the source says so
"""

from __future__ import annotations

import reprlib
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from triptych.errors import Code
from triptych.sources.records import ImageRef, Source, json_type
from triptych.sources.references import (
    INLINE_KEYS,
    NAME_KEYS,
    NotAnImage,
    is_empty,
    read_images,
    written_value,
)
from triptych.text.unread import unread_part_keys

DIALOGUES = ("messages", "conversations", "conversation")
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
_SPEAKERS = (("user", "assistant"), ("human", "gpt"), ("question", "answer"), ("query", "response"))
"""Keys of an element of `texts` that holds a question and its answer."""
_TEXT_TYPES = ("text", "input_text", "output_text")
_IMAGE_TYPES = ("image", "image_url", "input_image", "image_path", "image_base64", "image_file")
_PART_TEXT_KEYS = ("text", "value", "content", "input_text", "output_text")
_PART_IMAGE_KEYS = tuple(dict.fromkeys((*NAME_KEYS, *INLINE_KEYS)))
_PART_FORMS = 'a part is {"type": "text", "text"}, {"type": "image", "image"} or {"type": "image_url", "image_url"}'

Slot = ImageRef | tuple[str, int] | None
"""The image of a place in the text: one named there, one by its number (of a "mark" or "index"), or the next one."""


class ShapeError(ValueError):
    """A record that shows no dialogue: the code and the message of the problem."""

    def __init__(self, message: str, code: Code = "bad-shape") -> None:
        super().__init__(message)
        self.code: Code = code


@dataclass(slots=True)
class Dialogue:
    """The turns of a record as found, each an object with a role and a content."""

    turns: list[Any]
    keys: set[str] = field(default_factory=set)
    """Keys of the record that they were read from."""


def find_dialogue(data: Mapping[str, Any], source: Source) -> Dialogue:
    """The turns of a record.

    Raises:
        ShapeError: if it has none, or two that differ.
    """
    if source.choice is not None:
        return _choice(data, source.choice)
    columns = source.columns
    found: list[tuple[str, list[Any]]] = []
    for name in DIALOGUES:
        key = str(columns.get(name, name)) if columns else name
        value = data.get(key)
        if value is not None and not is_empty(value):
            found.append((key, _turns(key, value)))
    if found:
        first, turns = found[0]
        for key, other in found[1:]:
            if other != turns:
                raise ShapeError(f"`{first}` and `{key}` hold different dialogues; keep one of them")
        return Dialogue(_flattened(turns, first), {key for key, _ in found})
    return _texts(data, str(columns.get("texts", "texts"))) or _pair(data, columns) or _nothing(data, columns)


def _turns(key: str, value: Any) -> list[Any]:
    """A list of turns, also one written as a string."""
    if isinstance(value, str):
        value = written_value(value)
    if isinstance(value, Mapping):
        raise ShapeError(f"`{key}` is a list of turns, this is an object; write [...] around it")
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else "a string" if value is None else json_type(value)
        raise ShapeError(f"`{key}` is a list of turns, this is {found}")
    return value


def _flattened(turns: list[Any], key: str) -> list[Any]:
    """Turns where some elements may hold a question with its answer."""
    for turn in turns:
        if not isinstance(turn, dict) or ("role" not in turn and "from" not in turn):
            return _of_pairs(turns, key) or turns
    return turns


def _of_pairs(elements: Sequence[Any], key: str) -> list[Any] | None:
    """The turns of ``[{"user", "assistant"}, ...]``; None if the elements are none of these."""
    turns: list[Any] = []
    for number, element in enumerate(elements, 1):
        if not isinstance(element, Mapping):
            return None
        names = next((pair for pair in _SPEAKERS if set(pair) <= element.keys()), None)
        if names is None:
            return None
        system = element.get("system")
        if not is_empty(system):
            if turns:
                raise ShapeError(f"`system` in element {number} of `{key}`: only the first may have one")
            turns.append({"role": "system", "content": system})
        rest = {name: value for name, value in element.items() if name not in (*names, "system")}
        turns.append({**rest, "role": "user", "content": element[names[0]]})
        turns.append({"role": "assistant", "content": element[names[1]]})
    return turns


def _texts(data: Mapping[str, Any], key: str) -> Dialogue | None:
    value = data.get(key)
    if is_empty(value):
        return None
    elements = _turns(key, value)
    turns = _of_pairs(elements, key)
    if turns is None:
        if any(isinstance(element, str) for element in elements):
            raise ShapeError(
                f"`{key}` is a list of texts between images, without questions and answers; Triptych trains on "
                'dialogues: write it as `messages`, the text to learn as the content of an "assistant" turn'
            )
        raise ShapeError(f'`{key}` is a list of {{"user", "assistant"}}; its elements have other keys')
    return Dialogue(turns, {key})


def _pair(data: Mapping[str, Any], columns: Mapping[str, Any]) -> Dialogue | None:
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
    for element in _turns(key, value):
        if isinstance(element, list) and len(element) == 2 and all(isinstance(item, str) for item in element):
            turns += [{"role": "user", "content": element[0]}, {"role": "assistant", "content": element[1]}]
        elif isinstance(element, Mapping):
            turns += _of_pairs([element], key) or [element]
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


def _nothing(data: Mapping[str, Any], columns: Mapping[str, Any]) -> Dialogue:
    """Say what a record has instead of a dialogue."""
    shown = ", ".join(f"`{key[:40]}`" for key in sorted(map(str, data))[:15])
    keys = f"the keys are {shown}" if shown else "it has no key"
    for name in DIALOGUES:
        if data.get(str(columns.get(name, name))) == []:
            raise ShapeError(f"`{columns.get(name, name)}` is a list of turns, this is an empty list")
    for pair in PAIRS:
        question, answer = (str(columns.get(name, name)) for name in pair)
        if not is_empty(data.get(question)) and answer in data:
            raise ShapeError(f"`{question}` has no answer: `{answer}` is empty", "empty-answer")
    advice = "docs/data-format.md shows every shape"
    for pair in PAIRS:
        question, answer = (str(columns.get(name, name)) for name in pair)
        near = next((key for key in (f"{answer}s", f"{answer}_text", "answer", "label") if key in data), None)
        if not is_empty(data.get(question)) and near is not None:
            advice = f"if `{near}` answers `{question}`, write `columns: {{{pair[0]}: {question}, {pair[1]}: {near}}}`"
            break
    for key, value in data.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            first = value[0]
            if ("role" in first or "from" in first) or _of_pairs(value[:1], key):
                advice = f"if `{key}` holds the turns, write `columns: {{messages: {key}}}`"
                break
            if len(data) <= 5 and key in ("data", "samples", "records", "items", "train", "annotations", "questions"):
                advice = f"if `{key}` holds the records, save that list as the file"
    raise ShapeError(f"neither `conversations` nor `messages`, nor a question and its answer; {keys}; {advice}")


def _choice(data: Mapping[str, Any], names: Mapping[str, Any]) -> Dialogue:
    """Multiple choice: the question with its options, and the letter of the right one."""
    question_key, answer_key = (str(names.get(name, name)) for name in ("question", "answer"))
    question = data.get(question_key)
    if not isinstance(question, str) or is_empty(question):
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
        shown = "empty" if is_empty(answer) else shown
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
        options = {str(name): data[name] for name in key if not is_empty(data.get(name))}
        keys = [str(name) for name in key]
        if any(len(name) > 1 for name in options):
            options = dict(zip(string.ascii_uppercase, options.values(), strict=False))
    else:
        value = data.get(key)
        value = written_value(value) if isinstance(value, str) else value
        keys = [str(key)]
        if isinstance(value, Mapping):
            options = {str(name): item for name, item in value.items() if not is_empty(item)}
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


def read_part(part: Any, ignored: Collection[str]) -> str | list[Slot]:
    """A part of a content: its text, or the slots of its images.

    Raises:
        ShapeError: if it is neither, or holds more than is read.
    """
    if not isinstance(part, Mapping):
        raise ShapeError(f"is {json_type(part)}; {_PART_FORMS}")
    kind = part.get("type")
    if kind == "text" and len(part) == 2 and isinstance(part.get("text"), str):
        return str(part["text"])
    images = [key for key in _PART_IMAGE_KEYS if key in part and not is_empty(part[key])]
    if is_empty(kind):
        named = [key for key in images if key not in ("value", "content", "data")]
        kind = "image" if named else "text" if any(key in part for key in _PART_TEXT_KEYS) else None
    found: str | list[Slot]
    read = _PART_TEXT_KEYS if kind in _TEXT_TYPES else _PART_IMAGE_KEYS
    if kind in _TEXT_TYPES:
        found = _part_text(part)
    elif kind in _IMAGE_TYPES:
        found = _part_images(part, images)
    elif all(map(is_empty, part.values())):
        return ""  # a table pads lists of parts
    elif str(kind).removeprefix("input_") in ("video", "audio", "video_url", "audio_url"):
        raise ShapeError(f'has the type "{kind}", which is not supported: Triptych trains on text and images')
    else:
        keys = ", ".join(f"`{str(key)[:40]}`" for key in list(part)[:10]) or "no key"
        raise ShapeError(
            f"has {keys}{f' and the type {reprlib.repr(kind)}' if kind is not None else ''}; {_PART_FORMS}"
        )
    if len(part) > 2:
        for message in unread_part_keys(part, {*read, "type", "index"}, ignored):
            raise ShapeError(f"cannot be read whole: {message}")
    return found


def _part_text(part: Mapping[str, Any]) -> str:
    texts = [part[key] for key in _PART_TEXT_KEYS if part.get(key) is not None]
    if not texts:
        return ""
    text = texts[0]
    if not isinstance(text, str) or any(other != text for other in texts[1:] if other != ""):
        raise ShapeError(f"is a text that is {json_type(text)}; {_PART_FORMS}")
    return text


def _part_images(part: Mapping[str, Any], keys: Sequence[str]) -> list[Slot]:
    if keys:
        try:
            return list(read_images({key: part[key] for key in keys}))
        except NotAnImage as error:
            raise ShapeError(f"is an image, but {error}") from error
    number = part.get("index")
    if number is None:
        return [None]  # the next of the record's images
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ShapeError(f"has an `index` that is no number of an image from 0: {reprlib.repr(number)}")
    return [("index", number)]
