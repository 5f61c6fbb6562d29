"""Read the turns of one record: who speaks, text and image slots in reading order, and what is wrong with them."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from triptych.errors import Code, Origin, Problem
from triptych.sources.records import ImageLimits, ImageRef, Source, json_type
from triptych.sources.references import NotAnImage, is_blank, is_empty, read_images
from triptych.text import unread
from triptych.text.boxes import Objects
from triptych.text.shapes.calls import CALL_KEYS, NO_TOOLS, THOUGHT_KEYS, TOOL_KEYS, ToolCall, beside_text, spoken_calls
from triptych.text.shapes.found import ShapeError
from triptych.text.shapes.parts import Slot, part_limits, read_part, written_parts
from triptych.text.weights import SAMPLE_KEYS, TURN_KEYS, loss_weight

MARK = "<image>"
"""What stands for an image unless a source says otherwise."""
Role = Literal["system", "user", "assistant", "tool"]

# What the field's data sets call the roles; case does not matter. A turn of a tool holds what it gave back.
ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "developer": "system",
    "model": "assistant",
    "bot": "assistant",
    **dict.fromkeys(("tool", "observation", "tool_response", "function", "ipython"), "tool"),
}
TAGGED_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant", "observation": "tool"}
"""Names of ``tags`` -> roles."""
_CALLING = ("function_call", "tool_call")
"""Roles of an assistant's turn whose content is its calls."""
_ROLE_KEYS, _CONTENT_KEYS = ("from", "role"), ("value", "content")
_OWN_KEYS = frozenset((*_ROLE_KEYS, *_CONTENT_KEYS, *TURN_KEYS, "images", "image"))
_TOOL_KEYS = frozenset((*CALL_KEYS, *THOUGHT_KEYS, "tool_call_id"))


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: who speaks, what it holds in reading order, and whether its text is a target."""

    role: Role
    parts: tuple[str | int, ...]
    """Text, or the 0-based number of an image of the conversation; neighbouring texts are already joined."""
    weight: float
    """How much its text counts in the loss; 0 for a turn that is not learned."""
    calls: tuple[ToolCall, ...] = ()
    """Tools that an answer calls, after its text."""
    thought: str = ""
    """What is thought before the answer, where the data keeps it apart from the text."""

    @property
    def supervised(self) -> bool:
        """Whether it is learned."""
        return self.weight > 0


class Naming:
    """What the records of one source call their roles, keys and marks."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.roles = dict(ROLES)
        self.calling = {*_CALLING, *([source.tags["function"]] if "function" in source.tags else [])}
        for tag, role in TAGGED_ROLES.items():
            if tag in source.tags:
                self.roles[source.tags[tag]] = role
        tags, columns = source.tags, source.columns
        self.tagged = "role" in tags or "content" in tags
        self.role_keys = (*([tags["role"]] if "role" in tags else []), *_ROLE_KEYS)
        self.content_keys = (*([tags["content"]] if "content" in tags else []), *_CONTENT_KEYS)
        self.turn_images = (*([tags["images"]] if "images" in tags else []), "images", "image")
        self.turn_keys = _OWN_KEYS.union(_TOOL_KEYS, self.role_keys, self.content_keys, self.turn_images)
        self.ignored = frozenset(source.ignore)
        self.turn_weights = [key for key in TURN_KEYS if key not in self.ignored]
        self.system_key, self.task_key = (str(columns.get(name, name)) for name in ("system", "task"))
        named = (str(columns["weight"]),) if "weight" in columns else SAMPLE_KEYS
        self.weight_keys = frozenset(named) - self.ignored
        self.tool_keys = (str(columns["tools"]),) if "tools" in columns else TOOL_KEYS
        self.images, self.image = columns.get("images", "images"), str(columns.get("image", "image"))
        self.mark = source.mark
        before, numbered, after = source.mark.partition("{n}")
        self.numbered = re.compile(rf"{re.escape(before)}(\d{{1,6}}){re.escape(after)}") if numbered else None

    def is_calling(self, name: Any) -> bool:
        """Whether a name is the role of an answer whose content is its calls."""
        return isinstance(name, str) and (name in self.calling or name.strip().casefold() in self.calling)

    def role(self, name: Any) -> Role | None:
        """The role that a name stands for."""
        if not isinstance(name, str):
            return None
        known = self.roles.get(name)
        return known if known is not None else self.roles.get(name.strip().casefold())

    def plain_keys(self, message: Mapping[str, Any]) -> tuple[str, str]:
        """Keys of a turn that has nothing but a role and a content, as most have; empty for another turn."""
        if len(message) == 2 and not self.tagged:
            if "from" in message and "value" in message:
                return "from", "value"
            if "role" in message and "content" in message:
                return "role", "content"
        return "", ""

    def image_keys(self, data: Mapping[str, Any]) -> list[str]:
        """Keys of a record that list its images; those of a pattern ``image_{n}`` by their number."""
        wanted = self.images
        if not isinstance(wanted, str):
            return list(wanted)
        if "{n}" not in wanted:
            return [wanted]
        before, _, after = wanted.partition("{n}")
        pattern = re.compile(rf"{re.escape(before)}(\d{{1,6}}){re.escape(after)}")
        numbers = {key: int(found[1]) for key in data if (found := pattern.fullmatch(key))}
        return sorted(numbers, key=lambda key: numbers[key])


class TurnReader:
    """Collects the turns, image slots and problems of one record."""

    def __init__(self, naming: Naming, origin: Origin) -> None:
        self.naming = naming
        self.origin = origin
        self.problems: list[Problem] = []
        self.slots: list[Slot] = []
        """Which image each place takes, in reading order."""
        self.pad: tuple[int, str] | None = None
        """The first turn that types what may stand for an image, and what it types."""
        self.limits: dict[int, ImageLimits] = {}
        """What is asked of the image of a slot"""
        self.objects: Objects | None = None
        """Names and boxes that the record keeps beside its text"""
        self._own: list[ImageRef] = []  # images of the turn that is read, for its marks
        self.padded = origin.path.lower().endswith((".parquet", ".arrow"))
        """Whether objects hold the nulls of a table's columns"""

    def fail(self, code: Code, message: str, turn: int | None = None, image: int | None = None) -> None:
        """Note a problem."""
        self.problems.append(Problem(code, self.origin, message, turn=turn, image=image))

    def images(self, key: str, value: Any, turn: int | None = None) -> list[ImageRef]:
        """The images that a value under ``key`` names; none, and a problem, if it names something else."""
        if value is None:
            return []
        try:
            return read_images(value)
        except NotAnImage as error:
            self.fail("bad-shape", f"`{key}`: {error}", turn=turn, image=error.image)
            return []

    def turn(self, message: Any, number: int) -> Turn | None:
        """One turn; None, and a problem, for what is none, and None for one that holds nothing, as tables pad lists."""
        if not isinstance(message, Mapping):
            if message is None:
                return None
            self.fail("bad-shape", f"a turn is an object, this is {json_type(message)}", turn=number)
            return None
        known = len(self.problems)
        role_key, content_key = self.naming.plain_keys(message)
        if role_key:
            name, content = message[role_key], message[content_key]
        else:
            name, role_key = self._one_of(message, self.naming.role_keys, number)
            content, content_key = self._one_of(message, self.naming.content_keys, number)
        if not name and is_empty(message):
            return None
        calling = self.naming.is_calling(name)
        role = "assistant" if calling else self.naming.role(name)
        if role is None and len(self.problems) == known:
            self.fail("bad-shape", self._no_role(name, role_key, message), turn=number)
        weight, tooled = 1.0, NO_TOOLS
        if len(message) > 2:
            self._read_own(message, number)
            try:
                weight = loss_weight(message, self.naming.turn_weights)
                tooled = beside_text(message, self.naming.ignored, answer=role == "assistant", padded=self.padded)
            except ShapeError as error:
                self.fail(error.code, str(error), turn=number)
            self._check_unread(message, number)
        answer = role == "assistant"
        if calling:
            try:
                tooled, content = spoken_calls(content, content_key, tooled, padded=self.padded), ""
            except ShapeError as error:
                self.fail(error.code, str(error), turn=number)
                return None
        elif content is None and tooled.calls:
            content = ""
        parts = self._parts(content, content_key, number, answer=answer)
        if self._own:
            parts = self._place_own(parts, number)
        if role is None or parts is None:
            return None
        if answer and not tooled.calls and not any(isinstance(part, str) and part.strip() for part in parts):
            self.fail("empty-answer", "the answer has no text; write one or remove the turn", turn=number)
        learned = answer or self.naming.source.supervise in ("all", "everything")
        return Turn(role, tuple(parts), weight if learned else 0.0, tooled.calls, tooled.thought)

    def _one_of(self, message: Mapping[str, Any], keys: tuple[str, ...], number: int) -> tuple[Any, str]:
        """What is under the one of these keys that holds something, and the key."""
        found = [(message[key], key) for key in keys if message.get(key) is not None]
        if not found:
            return None, next((key for key in keys if key in message), keys[-1])
        if len(found) > 1 and len(keys) == 2:
            filled = [item for item in found if not is_blank(item[0])] or found[:1]
            value = filled[0][0]
            same = self.naming.role if keys == _ROLE_KEYS else (lambda item: item)
            if any(same(other) != same(value) for other, _ in filled[1:]):
                both = " and ".join(f"`{key}`" for _, key in filled)
                self.fail("bad-shape", f"{both} of a turn differ; keep one of them", turn=number)
            return filled[0]
        return found[0]

    def _no_role(self, name: Any, key: str, message: Mapping[str, Any]) -> str:
        known = ", ".join(self.naming.roles)
        if name is None:
            if len(message) == 1 and self.naming.role(next(iter(message))) is not None:
                speaker = next(iter(message))
                return f'a turn is {{"role": {speaker!r}, "content": ...}}, this is {{{speaker!r}: ...}}; write it so'
            keys = ", ".join(f"`{str(item)[:40]}`" for item in list(message)[:10])
            return (
                f"no `{key}`; the turn's keys are {keys or 'none'}: name them with `tags: {{role: ..., content: ...}}`"
            )
        found = reprlib.repr(name) if isinstance(name, str) else json_type(name)
        advice = "; write it into `tags`: `{user: ...}` or `{assistant: ...}`" if isinstance(name, str) else ""
        return f"`{key}` is {found}; the known roles are {known}{advice}"

    def _read_own(self, message: Mapping[str, Any], number: int) -> None:
        """Images that a turn keeps to itself."""
        for key in self.naming.turn_images:
            found = self.images(key, message.get(key), number)
            if found and self._own and [ref.source for ref in found] != [ref.source for ref in self._own]:
                self.fail("bad-shape", "`images` and `image` of a turn differ; keep one of them", turn=number)
            self._own = self._own or found

    def _place_own(self, parts: list[str | int] | None, number: int) -> list[str | int] | None:
        """Put the images of a turn at its marks, or in front where the source says so."""
        own, self._own = self._own, []
        if parts is None:
            return None
        places = [part for part in parts if isinstance(part, int) and self.slots[part] is None]
        if not places and self.naming.source.marks != "inline":
            first = min((part for part in parts if isinstance(part, int)), default=len(self.slots))
            self.slots[first:first] = own
            self.limits = {slot + len(own) * (slot >= first): limits for slot, limits in self.limits.items()}
            moved = [part + len(own) if isinstance(part, int) else part for part in parts]
            return [*range(first, first + len(own)), *moved]
        if len(places) != len(own):
            self.fail("marker-count", mismatch(len(places), len(own), self.naming.source.mark), turn=number)
            return parts
        for place, ref in zip(places, own, strict=True):
            self.slots[place] = ref
        return parts

    def _parts(self, content: Any, key: str, number: int, *, answer: bool) -> list[str | int] | None:
        if isinstance(content, str):
            if content[:1] != "[" or (written := written_parts(content, answer=answer)) is None:
                return self.split(content, number, answer=answer)
            content = written
        if isinstance(content, list):
            return self._listed_parts(content, number, answer=answer)
        advice = "; write [...] around it" if isinstance(content, Mapping) else ""
        found = f"{json_type(content)}{advice}"
        self.fail("bad-shape", f"`{key}` is a string or a list of parts, this is {found}", turn=number)
        return None

    def split(self, text: str, number: int, *, answer: bool) -> list[str | int]:
        """Cut a string at its image marks; every mark takes a slot."""
        if self.objects is not None:
            text = self._with_objects(text, number)
        if self.naming.numbered:
            return self._split_numbered(text, number, answer=answer)
        if text and "<" not in text and "[" not in text and self.naming.mark not in text:
            return [text]  # most answers: no mark, neither of the source nor of another tool
        parts: list[str | int] = []
        slots = self.slots
        for position, piece in enumerate(text.split(self.naming.mark)):
            if position:
                parts.append(len(slots))
                slots.append(None)
            if piece:
                if "<" in piece or "[" in piece:
                    self._split_tags(piece, parts, number, answer=answer)
                else:
                    parts.append(piece)
        return parts

    def _with_objects(self, text: str, number: int) -> str:
        """A text in which marks of objects are filled in."""
        assert self.objects is not None
        try:
            return self.objects.fill(text)
        except ShapeError as error:
            self.fail(error.code, str(error), turn=number or None)
            return text

    def _split_numbered(self, text: str, number: int, *, answer: bool) -> list[str | int]:
        """Cut a string at marks that say which image they take."""
        assert self.naming.numbered is not None
        parts: list[str | int] = []
        for position, piece in enumerate(self.naming.numbered.split(text)):
            if position % 2:
                self._slot(("mark", int(piece)), parts)
            elif "<" in piece or "[" in piece:
                self._split_tags(piece, parts, number, answer=answer)
            elif piece:
                parts.append(piece)
        return parts

    def _split_tags(self, text: str, parts: list[str | int], number: int, *, answer: bool) -> None:
        """Cut a piece at ``<img>name</img>``, and refuse marks that are not read."""
        done = 0
        for start, end, name in unread.image_tags(text):
            if text[done:start]:
                parts.append(text[done:start])
            self._slot(ImageRef(name), parts)
            done = end
        if text[done:]:
            parts.append(text[done:])
        self._check_text(text[done:], number, answer=answer, literal=False)
        if self.pad is None and (token := unread.lone_mark(text, answer=answer)):
            self.pad = number, token

    def _check_text(self, text: str, number: int, *, answer: bool, literal: bool) -> None:
        mark = unread.foreign_mark(text, answer=answer, literal=literal)
        if mark is not None:
            self.fail("bad-shape", unread.advice_on_mark(mark, literal=literal), turn=number or None)

    def _slot(self, slot: Slot, parts: list[str | int]) -> None:
        parts.append(len(self.slots))
        self.slots.append(slot)

    def _listed_parts(self, content: list[Any], number: int, *, answer: bool) -> list[str | int] | None:
        parts: list[str | int] = []
        for position, part in enumerate(content, 1):
            try:
                found = read_part(part, self.naming.ignored)
                limits = part_limits(part, self.naming.ignored) if isinstance(found, list) and len(part) > 1 else None
            except ShapeError as error:
                self.fail("bad-shape", f"part {position} of the content {error}", turn=number)
                return None
            if isinstance(found, list):
                for slot in found:
                    if limits is not None:
                        self.limits[len(self.slots)] = limits
                    self._slot(slot, parts)
            elif found:
                if self.objects is not None:
                    found = self._with_objects(found, number)
                # Literal: a mark of an image inside a text part is text.
                if "<" in found or "[" in found:
                    self._check_text(found, number, answer=answer, literal=True)
                if parts and isinstance(parts[-1], str):
                    parts[-1] += found
                else:
                    parts.append(found)
        return parts

    def _check_unread(self, message: Mapping[str, Any], number: int) -> None:
        for key, problem in unread.unread_keys(message, self.naming.turn_keys, self.naming.ignored, ()):
            named = f"`{key[:60]}` of a turn holds images that are not read; write `tags: {{images: {key[:60]}}}`"
            self.fail("bad-shape", problem or f"{named}, or `ignore: [{key[:60]}]` to leave them out", turn=number)


def mismatch(marks: int, images: int, mark: str) -> str:
    """That marks and images are not as many, and what to do."""
    found = f"{count(marks, f'{mark} mark')} but {count(images, 'image')}"
    if not images:
        return f"{found}; list each image under `images`, or remove the mark; in a text part it is plain text"
    if not marks:
        advice = "write a mark where each image belongs, or `marks: auto` in the source (or give --marks auto)"
        return f"{found}; {advice}: all in front"
    return f"{found}; give each image one mark"


def count(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
