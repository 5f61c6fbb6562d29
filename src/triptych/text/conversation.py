"""Recognise the known record shapes and turn each record into turns, image slots and image references."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from triptych.errors import Code, Origin, Problem, SampleError
from triptych.sources.records import ImageRef, Record, Source, json_type

MARK = "<image>"
Role = Literal["system", "user", "assistant"]

# What the field's data sets call the three roles.
ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
# Keys of neighbouring data formats whose content would be lost if they were ignored.
UNSUPPORTED = ("videos", "video", "audios", "audio", "tools")


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: who speaks, what it holds in reading order, and whether its text is a target."""

    role: Role
    parts: tuple[str | int, ...]
    """Text, or the 0-based number of an image of the conversation; neighbouring texts are already joined."""
    supervised: bool


@dataclass(frozen=True, slots=True)
class Conversation:
    """One sample as a dialogue. The k-th image slot in reading order is ``images[k]``."""

    turns: tuple[Turn, ...]
    images: tuple[ImageRef, ...]
    origin: Origin
    task: str | None = None
    """The record's ``task`` field: evaluation reports a score for each."""


def parse(record: Record, source: Source) -> Conversation:
    """Read ``record`` as ShareGPT, OpenAI or LLaVA, whichever its keys show.

    Raises:
        SampleError: with every problem found (``bad-shape``, ``role-order``, ``empty-answer``, ``marker-count``).
    """
    return _Parser(record, source).parse()


class _Parser:
    """Collects the turns, images and problems of one record."""

    def __init__(self, record: Record, source: Source) -> None:
        self.data = record.data
        self.origin = record.origin
        self.columns = source.columns
        self.tags = source.tags
        self.roles = dict(ROLES)
        for role in ("system", "user", "assistant"):
            if role in source.tags:
                self.roles[source.tags[role]] = role
        self.problems: list[Problem] = []
        self.inline: list[ImageRef] = []
        self.inline_slots = False
        self.marks = 0

    def parse(self) -> Conversation:
        messages = self._messages()
        turns = self._system_turn() if messages else []
        first = 1 - len(turns)
        for number, message in enumerate(messages, 1):
            turn = self._turn(message, number)
            if turn is not None:
                turns.append(turn)
        listed = self._listed_images()
        task = self.data.get("task")
        if task is not None and not isinstance(task, str):
            self._fail("bad-shape", f"`task` is a string, this is {json_type(task)}")
        if not self.problems:
            self._check_order(turns, first)
            self._check_marks(listed)
        if self.problems:
            raise SampleError(self.problems)
        images = self.inline if self.inline_slots else listed
        return Conversation(tuple(turns), tuple(images), self.origin, task)

    def _fail(self, code: Code, message: str, turn: int | None = None, image: int | None = None) -> None:
        self.problems.append(Problem(code, self.origin, message, turn=turn, image=image))

    def _keys(self) -> str:
        shown = ", ".join(f"`{key[:40]}`" for key in sorted(self.data)[:20])
        return f"the keys are {shown}" if shown else "it has no key"

    def _column(self, name: str) -> Any:
        return self.data.get(self.columns.get(name, name))

    def _messages(self) -> list[Any]:
        for name in UNSUPPORTED:
            if self.data.get(name):
                self._fail(
                    "bad-shape", f"`{name}` is not supported: Triptych trains on text and images; remove the key"
                )
        key = next((key for key in ("conversations", "messages") if self._column(key) is not None), None)
        if key is None:
            self._fail("bad-shape", f"neither `conversations` nor `messages`; {self._keys()}")
            return []
        messages = self._column(key)
        if not isinstance(messages, list) or not messages:
            found = json_type(messages) if not isinstance(messages, list) else "an empty list"
            self._fail("bad-shape", f"`{key}` is a list of turns, this is {found}")
            return []
        return messages

    def _system_turn(self) -> list[Turn]:
        """The system prompt that some data sets keep beside the conversation."""
        system = self._column("system")
        if system is None or system == "":
            return []
        if not isinstance(system, str):
            self._fail("bad-shape", f"`system` is a string, this is {json_type(system)}")
            return []
        return [Turn("system", tuple(self._split(system)), False)]

    def _turn(self, message: Any, number: int) -> Turn | None:
        if not isinstance(message, Mapping):
            self._fail("bad-shape", f"a turn is an object, this is {json_type(message)}", turn=number)
            return None
        role_key = self.tags.get("role", "from" if "from" in message else "role")
        content_key = self.tags.get("content", "value" if "value" in message else "content")
        name, content = message.get(role_key), message.get(content_key)
        role = self.roles.get(name) if isinstance(name, str) else None
        if role is None:
            known = ", ".join(self.roles)
            found = reprlib.repr(name) if isinstance(name, str) else json_type(name)
            self._fail("bad-shape", f"`{role_key}` is {found}; the known roles are {known}", turn=number)
        parts = self._parts(content, content_key, number)
        loss = message.get("loss")
        loss = True if loss is None else loss  # tables write what is not there as null
        if not isinstance(loss, bool):
            self._fail("bad-shape", f"`loss` is true or false, this is {json_type(loss)}", turn=number)
        if role is None or parts is None:
            return None
        if role == "assistant" and not any(isinstance(part, str) and part.strip() for part in parts):
            self._fail("empty-answer", "the answer has no text; write one or remove the turn", turn=number)
        return Turn(role, tuple(parts), role == "assistant" and loss is True)

    def _parts(self, content: Any, key: str, number: int) -> list[str | int] | None:
        if isinstance(content, str):
            return self._split(content)
        if isinstance(content, list):
            return self._listed_parts(content, number)
        self._fail("bad-shape", f"`{key}` is a string or a list of parts, this is {json_type(content)}", turn=number)
        return None

    def _split(self, text: str) -> list[str | int]:
        """Cut a string at its image marks; every mark takes the next slot."""
        parts: list[str | int] = []
        for position, piece in enumerate(text.split(MARK)):
            if position:
                parts.append(self.marks)
                self.marks += 1
            if piece:
                parts.append(piece)
        return parts

    def _listed_parts(self, content: list[Any], number: int) -> list[str | int] | None:
        parts: list[str | int] = []
        for position, part in enumerate(content, 1):
            kind = part.get("type") if isinstance(part, Mapping) else None
            value = part.get(kind) if kind in ("text", "image", "image_url") else None
            if kind == "image_url" and isinstance(value, Mapping):
                value = value.get("url")
            if kind == "text" and isinstance(value, str):
                # Literal: a mark inside a text part is text.
                if parts and isinstance(parts[-1], str):
                    parts[-1] += value
                elif value:
                    parts.append(value)
            elif kind == "image" and value is None:
                # The marker form: the file stands in the record's `images`.
                parts.append(self.marks)
                self.marks += 1
            elif kind in ("image", "image_url") and isinstance(value, (str, ImageRef)) and value:
                parts.append(self.marks)
                self.marks += 1
                self.inline.append(_reference(value))
                self.inline_slots = True
            else:
                expected = '{"type": "text", "text"}, {"type": "image", "image"} or {"type": "image_url", ...}'
                self._fail("bad-shape", f"part {position} of the content is none of {expected}", turn=number)
                return None
        return parts

    def _listed_images(self) -> list[ImageRef]:
        key = "images" if self._column("images") is not None else "image"
        value = self._column(key)
        if value is None:
            return []
        images = [value] if isinstance(value, (str, ImageRef)) else value
        if not isinstance(images, list):
            self._fail("bad-shape", f"`{key}` is a list of files, this is {json_type(value)}")
            return []
        for number, image in enumerate(images, 1):
            if not isinstance(image, (str, ImageRef)) or not image:
                found = "empty" if image == "" else json_type(image)
                self._fail("bad-shape", f"an image is named by a string, this is {found}", image=number)
                return []
        return [_reference(image) for image in images]

    def _check_order(self, turns: list[Turn], first: int) -> None:
        dialogue = turns[1:] if turns and turns[0].role == "system" else turns
        offset = first + len(turns) - len(dialogue)
        for position, turn in enumerate(dialogue):
            expected = "assistant" if position % 2 else "user"
            if turn.role != expected:
                message = f"a {turn.role} turn where a {expected} turn belongs; roles alternate, starting with the user"
                self._fail("role-order", message, turn=offset + position)
                return
        if not dialogue or dialogue[-1].role != "assistant":
            self._fail("role-order", "the conversation does not end with an answer; add one or remove the last turn")
        elif not any(turn.supervised for turn in dialogue):
            self._fail("empty-answer", 'every answer has `"loss": false`: there is nothing to learn from')

    def _check_marks(self, listed: list[ImageRef]) -> None:
        if self.inline_slots and listed:
            self._fail("bad-shape", "images are named both in the content and in `images`; keep one of the two")
        found = len(self.inline) if self.inline_slots else len(listed)
        if self.marks != found:
            message = f"{_count(self.marks, f'{MARK} mark')} but {_count(found, 'image')}; give each image one mark"
            self._fail("marker-count", message)


def _reference(image: str | ImageRef) -> ImageRef:
    return ImageRef(image) if isinstance(image, str) else image


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
