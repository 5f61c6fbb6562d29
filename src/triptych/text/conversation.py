"""Turn a record of any known shape into turns, image slots and image references; nothing that it holds is lost."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from triptych.errors import Origin, Problem, SampleError
from triptych.images.near_names import names_several
from triptych.sources import storage
from triptych.sources.records import ImageRef, Record, Source, json_type
from triptych.sources.references import is_empty
from triptych.text import unread
from triptych.text.boxes import Box, read_objects
from triptych.text.shapes.calls import offered_tools, unasked
from triptych.text.shapes.dialogue import DIALOGUES, find_dialogue
from triptych.text.shapes.found import ShapeError
from triptych.text.shapes.parts import joined
from triptych.text.turns import MARK as MARK
from triptych.text.turns import ROLES as ROLES
from triptych.text.turns import Naming, TurnReader, count, mismatch
from triptych.text.turns import Role as Role
from triptych.text.turns import Turn as Turn
from triptych.text.weights import record_weight

_TURN_LISTS = (*DIALOGUES, "prompt", "completion", "history")
_SYSTEM_PROMPTS = ("system_prompt", "system_message")


@dataclass(frozen=True, slots=True)
class Conversation:
    """One sample as a dialogue. The k-th image slot in reading order is ``images[k]``."""

    turns: tuple[Turn, ...]
    images: tuple[ImageRef, ...]
    origin: Origin
    task: str | None = None
    """The record's ``task`` field: evaluation reports a score for each."""
    weight: float = 1.0
    """How much the sample counts in the loss; the weights of its turns are multiplied by it."""
    objects: tuple[str | Box, ...] = ()
    """Names and boxes of objects: the k-th takes the place of character ``OBJECT`` + k in the texts."""
    whole: bool = False
    """Whether everything is learned, headers of turns too, and not only answers."""
    with_images: bool = False
    """Whether the tokens of images are learned, too, where their turn is."""
    tools: tuple[str, ...] = ()
    """Tools that are offered, each its definition as JSON."""

    @property
    def uses_tools(self) -> bool:
        """Whether tools are offered, called or heard."""
        return bool(self.tools) or any(turn.calls or turn.role == "tool" for turn in self.turns)


def parse(record: Record, source: Source) -> Conversation:
    """Read ``record`` in whichever shape its keys show.

    Raises:
        SampleError: with every problem found (``bad-shape``, ``role-order``, ``empty-answer``, ``marker-count``).
    """
    return ConversationReader(source).read(record)


class ConversationReader:
    """Reads the records of one source."""

    def __init__(self, source: Source) -> None:
        self.naming = Naming(source)

    def read(self, record: Record) -> Conversation:
        """One record.

        Raises:
            SampleError: with every problem found.
        """
        try:
            return _RecordReader(self.naming, record).read()
        except RecursionError as error:
            problem = Problem("bad-shape", record.origin, "lists or objects are nested too deep")
            raise SampleError([problem]) from error


class _RecordReader(TurnReader):
    """Collects the turns, images and problems of one record."""

    def __init__(self, naming: Naming, record: Record) -> None:
        super().__init__(naming, record.origin)
        # What the source leaves out on purpose is as if it were not there.
        left = naming.ignored
        self.data = {key: value for key, value in record.data.items() if key not in left} if left else record.data
        self.source = naming.source

    def read(self) -> Conversation:
        listed, read_keys = self._listed_images()
        turns: list[Turn] = []
        tools: tuple[str, ...] = ()
        try:
            dialogue = find_dialogue(self.data, self.source)
        except ShapeError as error:
            self.fail(error.code, str(error))
        else:
            read_keys |= dialogue.keys
            self._read_objects(read_keys)
            tools = self._tools(read_keys)
            turns = self._system_turn()
            first = 1 - len(turns)
            for number, message in enumerate(dialogue.turns, 1):
                turn = self.turn(message, number)
                if turn is not None and not self._joined_calls(turns, turn, message):
                    turns.append(turn)
            if not first and len(turns) > 1 and turns[0] == turns[1]:
                del turns[1]  # the system prompt beside the dialogue, and again in it
            if not self.problems:
                turns = self._merged(turns) if self.source.roles == "merge" else turns
                self._check_order(turns, first)
                turns = self._learned(turns)
            weight = self._weight(dialogue.keys)
            if not read_keys.issuperset(self.data):
                self._check_record({*read_keys, *self.naming.weight_keys}, listed, dialogue.turns, turns)
        images = () if self.problems else self._place(turns, listed)
        if self.objects is not None and not self.problems and (mismatch := self.objects.mismatch(len(images))):
            self.fail("marker-count", mismatch)
        if self.problems:
            raise SampleError(self.problems)
        if self.limits:
            images = [replace(ref, limits=self.limits.get(place)) for place, ref in enumerate(images)]
        turns = self._with_system(turns)
        objects = tuple(self.objects.taken) if self.objects is not None else ()
        told = tuple(turns), tuple(images), self.origin, self._task(), weight, objects
        return Conversation(*told, self._whole, self.source.supervise == "everything", tools)

    @property
    def _whole(self) -> bool:
        return self.source.supervise in ("all", "everything")

    def _read_objects(self, read: set[str]) -> None:
        """Boxes that the record keeps beside its text."""
        value = self.data.get("objects")
        if value is None or "objects" in self.naming.ignored or "objects" in read or is_empty(value):
            return
        read.add("objects")
        try:
            self.objects = read_objects(value)
        except ShapeError as error:
            self.fail(error.code, f"{error}; or write `ignore: [objects]` in the source to leave them out")

    def _tools(self, read: set[str]) -> tuple[str, ...]:
        """Tools that the record offers."""
        keys = [key for key in self.naming.tool_keys if key not in read and not is_empty(self.data.get(key))]
        read.update(keys)
        try:
            return offered_tools(self.data, keys, padded=self.padded)
        except ShapeError as error:
            self.fail(error.code, f"{error}; `ignore: [{keys[0]}]` in the source leaves it out")
            return ()

    def _joined_calls(self, turns: list[Turn], turn: Turn, message: Any) -> bool:
        """Put calls that have a turn of their own after the text, or the calls, of the answer before them."""
        last = turns[-1] if turns else None
        if last is None or last.role != "assistant" or not turn.calls:
            return False
        if not any(self.naming.is_calling(message.get(key)) for key in self.naming.role_keys):
            return False
        if last.weight != turn.weight or turn.thought:
            self.fail("role-order", "a call continues the answer before it; give both one weight and one thought")
        turns[-1] = replace(last, calls=(*last.calls, *turn.calls))
        return True

    def _weight(self, read: set[str]) -> float:
        """The weight that the record gives itself; text under a key of one is a note."""
        keys = [key for key in self.data if key in self.naming.weight_keys and key not in read]
        if not keys:
            return 1.0
        try:
            weight = record_weight(self.data, keys)
        except ShapeError as error:
            self.fail(error.code, f"{error}; `ignore: [{keys[0]}]` in the source leaves it out")
            return 1.0
        if not weight:
            self.fail("empty-answer", f"`{keys[0]}` says that nothing of the record is learned; remove the record")
        return weight

    def _learned(self, turns: list[Turn]) -> list[Turn]:
        """The turns, of which only the last answer is learned where the source says so."""
        if self.source.supervise != "last":
            return turns
        return [*(replace(turn, weight=0.0) for turn in turns[:-1]), turns[-1]] if turns else turns

    def _task(self) -> str | None:
        """The record's task; a value of another meaning is none."""
        task = self.data.get(self.naming.task_key)
        if isinstance(task, int | float) and not isinstance(task, bool):
            return str(task)
        return task if isinstance(task, str) and task else None

    def _listed_images(self) -> tuple[list[ImageRef], set[str]]:
        """The images that the record lists, and the keys they are under."""
        data = self.data
        wanted = self.naming.image_keys(data)
        single = self.naming.image
        keys = {*wanted, single}
        listed = [ref for key in wanted for ref in self.images(key, data.get(key))]
        if single not in wanted and single in data and single not in self.naming.ignored:
            alone = self.images(single, data[single])
            if alone and listed and _names(alone) != _names(listed):
                self.fail("bad-shape", f"`{wanted[0]}` and `{single}` name different images; keep one of them")
            listed = listed or alone
        base = data.get("data_path")
        if isinstance(base, str) and not is_empty(base) and "data_path" not in self.naming.ignored:
            listed = [_based(ref, base) for ref in listed]
            keys.add("data_path")
        return listed, keys

    def _system_turn(self) -> list[Turn]:
        """The system prompt that some data sets keep beside the conversation."""
        system = self.data.get(self.naming.system_key)
        if system is None or is_empty(system):
            return []
        if not isinstance(system, str):
            self.fail("bad-shape", f"`{self.naming.system_key}` is a string, this is {json_type(system)}")
            return []
        return [self._turn("system", self.split(system, 0, answer=False))]

    def _with_system(self, turns: list[Turn]) -> list[Turn]:
        """The turns, with the source's own system prompt where the record has none."""
        system = self.source.system
        if system is None or turns[0].role == "system":
            return turns
        return [self._turn("system", [system] if system else []), *turns]

    def _turn(self, role: Role, parts: Iterable[str | int]) -> Turn:
        """A turn that is no answer."""
        return Turn(role, tuple(parts), float(self._whole))

    def _merged(self, turns: list[Turn]) -> list[Turn]:
        """Neighbouring turns of one role as one, with a line break between them."""
        merged: list[Turn] = []
        for turn in turns:
            last = merged[-1] if merged else None
            if last is None or last.role != turn.role or turn.role == "tool" or last.calls or turn.thought:
                merged.append(turn)
                continue
            if last.weight != turn.weight:
                self.fail("role-order", f"two {turn.role} turns in a row of different weight cannot be merged")
            merged[-1] = replace(turn, parts=joined((*last.parts, "\n", *turn.parts)), thought=last.thought)
        return merged

    def _check_order(self, turns: list[Turn], first: int) -> None:
        """An answer last, and something to learn; neighbours of one role only where the source allows it.

        Args:
            turns: the record's.
            first: number of the first turn, 0 for a system prompt beside the dialogue.
        """
        if self.source.roles == "alternate":
            for position, (one, two) in enumerate(pairwise(turns), 1):
                if one.role == two.role != "tool":  # a tool may answer each of several calls
                    advice = "join the two turns, or write `roles: merge` in the source (joined by a line break)"
                    message = f"two {two.role} turns in a row; {advice} or `roles: keep` (or give --roles)"
                    self.fail("role-order", message, turn=first + position)
                    return
        if (number := unasked([turn.role for turn in turns])) is not None:
            message = "what a tool gave back follows the answer that called it; move the turn there"
            self.fail("role-order", message, turn=first + number)
        elif not turns or turns[-1].role != "assistant":
            self.fail("role-order", "the conversation does not end with an answer; add one or remove the last turn")
        elif not any(turn.weight for turn in (turns[-1:] if self.source.supervise == "last" else turns)):
            answer = "the last answer" if self.source.supervise == "last" else "every answer"
            self.fail("empty-answer", f'{answer} has `"loss": false` or a weight of 0: there is nothing to learn from')

    def _check_record(self, read: set[str], listed: list[ImageRef], found: list[Any], turns: list[Turn]) -> None:
        """Refuse what stands under keys of the record that are not read."""
        system = (self.naming.system_key, self.naming.task_key)
        known = {*_names(listed), *_names(slot for slot in self.slots if isinstance(slot, ImageRef))}
        lost: list[str] = []
        for key, problem in unread.unread_keys(self.data, {*read, *system}, self.naming.ignored, known):
            if problem:
                self.fail("bad-shape", f"{problem}; remove it, or write `ignore: [{key[:60]}]` in the source")
            else:
                lost.append(key)
        if lost:
            images = [key for key in (*self.naming.image_keys(self.data), "image") if not is_empty(self.data.get(key))]
            self.fail("bad-shape", unread.advice_on_images(lost, images))
        begins_with = turns[0].parts if turns and turns[0].role == "system" else ()
        for key in _SYSTEM_PROMPTS:
            value = self.data.get(key)
            unread_here = key not in read and key not in system and key not in self.naming.ignored
            if unread_here and not is_empty(value) and begins_with != (value,):
                self.fail("bad-shape", f"`{key}` is not read; write `columns: {{system: {key}}}` in the source")
        for key in _TURN_LISTS:
            value = self.data.get(key)
            if key in read or key in self.naming.ignored or not isinstance(value, list) or is_empty(value):
                continue
            if isinstance(value[0], dict) and value not in (found[: len(value)], found[-len(value) :]):
                self.fail("bad-shape", f"`{key}` holds other turns, which are not read; remove it")

    def _place(self, turns: list[Turn], listed: list[ImageRef]) -> list[ImageRef]:
        """The image of each slot; where the source says so, images without marks come before the first question."""
        slots = self.slots
        bare = slots.count(None)
        inline = [slot for slot in slots if isinstance(slot, ImageRef)] if bare < len(slots) else []
        numbered = [slot for slot in slots if isinstance(slot, tuple)] if bare + len(inline) < len(slots) else []
        if numbered and self.objects is not None and self.objects.boxes:
            message = "boxes count images in the order of the text, and its marks have numbers of their own"
            self.fail("bad-shape", message)
            return []
        if numbered:
            return self._numbered(numbered, listed, inline, bare)
        if not bare and self.source.marks != "inline" and listed and not inline:
            return self._in_front(turns, listed)
        if bare and self.source.marks == "first":
            message = f"the text has {count(bare, f'{self.source.mark} mark')}; write `marks: auto`, not `marks: first`"
            self.fail("marker-count", message)
        elif inline and listed and not bare:
            if _names(inline) != _names(listed):
                self.fail("bad-shape", "images are named both in the content and in `images`; keep one of the two")
            return inline
        elif bare != len(listed):
            self._mismatch(turns, bare, listed)
        elif self.pad is not None and not self.slots:
            number, token = self.pad
            message = (
                f"{token} is typed in the text, but there is no image; write {self.source.mark} where the image "
                "belongs and list it under `images`; as a text part of the content it is plain text"
            )
            self.fail("bad-shape", message, turn=number or None)
        elif bare == len(slots):
            return listed
        rest = iter(listed)
        return [slot if isinstance(slot, ImageRef) else next(rest, slot) for slot in self.slots]  # type: ignore[misc]

    def _in_front(self, turns: list[Turn], listed: list[ImageRef]) -> list[ImageRef]:
        other = self._other_mark(turns) if self.source.marks == "auto" else None
        if other is not None and sum(text.count(other) for text in _texts(turns)) == len(listed):
            message = (
                f"{other} stands in the text as often as there are images; if it is their mark, write "
                f"`mark: \"{other}\"` in the source (or give --mark '{other}'); if it is text, `marks: first`"
            )
            self.fail("marker-count", message)
            return []
        for number, turn in enumerate(turns):
            if turn.role == "user":
                turns[number] = replace(turn, parts=(*range(len(listed)), *turn.parts))
                return listed
        self.fail("marker-count", f"{count(len(listed), 'image')} but no question to put them in front of")
        return []

    def _numbered(
        self, numbered: list[tuple[str, int]], listed: list[ImageRef], inline: list[ImageRef], bare: int
    ) -> list[ImageRef]:
        """The images of slots that say which one they take; one may be shown twice, and none left out."""
        if bare or inline:
            self.fail("marker-count", "some images have a number and some have none; number all of them or none")
            return []
        start = 0 if any(kind == "index" or number == 0 for kind, number in numbered) else 1
        places = [number - start for _, number in numbered]
        wrong = next((place for place in places if place >= len(listed)), None)
        unused = sorted(set(range(len(listed))).difference(places))
        if wrong is not None:
            message = f"a mark or part takes image {wrong + start}, counted from {start}, of {len(listed)}"
            self.fail("marker-count", message)
        elif unused:
            self.fail("marker-count", f"no mark or part takes image {unused[0] + start}, counted from {start}")
        return [] if self.problems else [listed[place] for place in places]

    def _mismatch(self, turns: list[Turn], marks: int, listed: list[ImageRef]) -> None:
        message = mismatch(marks, len(listed), self.source.mark)
        other = self._other_mark(turns)
        if other is not None:
            message += f'; if {other} in the text stands for an image, write `mark: "{other}"` in the source'
        elif not listed and self.naming.image_keys(self.data) != ["images"]:
            message += f"; `columns` reads images from {self.source.columns['images']}"
        elif several := next((ref.source for ref in listed if names_several(ref.source)), None):
            message += f"; {several[:80]!r} looks like several names in one text: write them as a list"
        self.fail("marker-count", message)

    def _other_mark(self, turns: list[Turn]) -> str | None:
        """What in the texts may be the mark of another tool."""
        texts = (text for text in _texts(turns) if "<" in text or "[" in text)
        return next((found for text in texts if (found := unread.looks_like_mark(text))), None)


def _texts(turns: Iterable[Turn]) -> Iterator[str]:
    return (part for turn in turns for part in turn.parts if isinstance(part, str))


def _names(refs: Iterable[ImageRef]) -> list[str]:
    return [ref.source for ref in refs]


def _based(ref: ImageRef, base: str) -> ImageRef:
    """An image whose name starts from a folder of its record."""
    absolute = ref.location is not None or ref.source.startswith(("data:", "file:")) or posixpath.isabs(ref.source)
    return ref if absolute or storage.is_remote(ref.source) else ImageRef(posixpath.join(base, ref.source))
