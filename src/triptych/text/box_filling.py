"""Boxes as a family writes them, right whatever the image is resized to.

A box may be in pixels of the resized image, whose size a budget decides long after the text is tokenized. So a text is
tokenized with a 0 for each coordinate, and where that stands is kept with the coordinate. The family's tokenizers make
one token of every digit, whatever stands beside it; so digits put in its place are the tokens of the text itself.

    conversation    "at \U000f0000."        objects[0] is the box
    text            "at [0, 0, 0, 0]."      ids with one token for each coordinate
    filled          "at [5, 10, 15, 20]."   once the image has a size
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from triptych.text.boxes import MOST, NUMBER, OBJECT, OBJECTS, Box
from triptych.text.conversation import Conversation, Turn
from triptych.text.tokens.chat_template import BoxForm
from triptych.text.tokens.encoded import NO_BOXES, Encoded, Segment

RELATIVE = 1000
"""What a side of an image is in relative boxes"""
X, Y, FRACTION, ABSOLUTE = 0, 1, 2, 4
"""Bits of the kind of a coordinate: along which side, given as a fraction of it, written in pixels."""

_NUMBERS = re.compile(f"[{chr(NUMBER)}-{chr(NUMBER + MOST)}]")


@dataclass(slots=True)
class BoxMarks:
    """The coordinates of one conversation, and where they stand in its segments."""

    tokenizer: Tokenizer
    numbers: list[tuple[int, int, float]] = field(default_factory=list)
    """(image, kind, value) of each coordinate"""
    places: list[tuple[int, str, list[tuple[int, int]]]] = field(default_factory=list)
    """(segment, its text, [(character, coordinate)])"""

    def add(self, box: Box, form: BoxForm) -> str:
        """The text of a box, with a character of its own for each coordinate."""
        kind = FRACTION * box.fraction + ABSOLUTE * (form == "absolute")
        start = NUMBER + len(self.numbers)
        self.numbers += ((box.image, kind + place % 2, value) for place, value in enumerate(box.numbers))
        letters = [chr(start + place) for place in range(len(box.numbers))]
        if form != "marked":
            return f"[{', '.join(letters)}]"
        points = ",".join(f"({x},{y})" for x, y in zip(letters[::2], letters[1::2], strict=True))
        return f"<|box_start|>{points}<|box_end|>"

    def take(self, text: str, segment: int) -> str:
        """A text with a 0 for each coordinate; where they are is kept."""
        found = [(mark.start(), ord(mark[0]) - NUMBER) for mark in _NUMBERS.finditer(text)]
        if not found:
            return text
        text = _NUMBERS.sub("0", text)
        self.places.append((segment, text, found))
        return text

    def rows(self, segments: Sequence[Segment], texts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """(B, 4) index of its token, image, kind and value of each coordinate.

        Args:
            segments: of the conversation.
            texts: ids of each text that segments name by number.
        """
        if not self.places:
            return NO_BOXES
        lengths = (len(texts[number] if fixed is None else fixed) for fixed, number, *_ in segments)
        starts = list(accumulate(lengths, initial=0))
        rows = []
        for segment, text, found in self.places:
            offsets = self.tokenizer.encode(text, add_special_tokens=False).offsets
            token_at = {offset[0]: token for token, offset in enumerate(offsets) if offset[1] == offset[0] + 1}
            rows += [(starts[segment] + token_at[place], *self.numbers[number]) for place, number in found]
        return np.array(rows, np.float64)


def coordinates(conversation: Conversation) -> NDArray[np.float64]:
    """(B, 4) as ``BoxMarks.rows``, of a conversation that is not tokenized: all at index 0."""
    boxes = [item for item in conversation.objects if isinstance(item, Box)]
    rows = [
        (0, box.image, FRACTION * box.fraction + place % 2, number)
        for box in boxes
        for place, number in enumerate(box.numbers)
    ]
    return np.array(rows, np.float64).reshape(-1, 4)


def counted(rows: Sequence[NDArray[np.float64]]) -> NDArray[np.int32]:
    """(C + 1,) bounds of arrays that stand end to end."""
    return np.cumsum([0, *map(len, rows)]).astype(np.int32)


def fill_objects(conversation: Conversation, form: BoxForm, marks: BoxMarks) -> tuple[Turn, ...]:
    """The turns with names, and with boxes in which each coordinate is a character of ``marks``."""

    def written(found: re.Match[str]) -> str:
        item = conversation.objects[ord(found[0]) - OBJECT]
        if isinstance(item, Box):
            return marks.add(item, form)
        return f"<|object_ref_start|>{item}<|object_ref_end|>" if form == "marked" else item

    turns = []
    for turn in conversation.turns:
        parts = (OBJECTS.sub(written, part) if isinstance(part, str) else part for part in turn.parts)
        turns.append(replace(turn, parts=tuple(parts)))
    return tuple(turns)


def writes_digits_alone(tokenizer: Tokenizer) -> bool:
    """Whether every digit is a token of its own, and these follow each other in the vocabulary."""
    texts = ("0123456789", "[907, 1]", "(16,25)")
    found = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    first = found[0].ids
    digits = [
        sum(end == start + 1 and text[start].isdigit() for start, end in one.offsets)
        for one, text in zip(found, texts, strict=True)
    ]
    return first == list(range(first[0], first[0] + 10)) and digits == [10, 4, 4]


def outside(boxes: NDArray[np.float64], sizes: Sequence[tuple[int, int]]) -> tuple[int, str] | None:
    """The first coordinate that is not in its image, as (number of the image, what is wrong); None if all are.

    Args:
        boxes: (B, 4) of ``Encoded``.
        sizes: measured (height, width) of each image, px.
    """
    for _, image, kind, value in boxes.tolist():
        height, width = sizes[int(image)]
        axis, side = ("y", height) if int(kind) & Y else ("x", width)
        limit = 1 if int(kind) & FRACTION else side
        if not 0 <= value <= limit:
            what = "height" if axis == "y" else "width"
            given = "the fraction 1" if int(kind) & FRACTION else f"the image's {what} of {side:,} px"
            return int(image), f"a box has {axis} = {value:g}, which is outside of 0 to {given}; fix the box"
    return None


def fill_boxes(encoded: Encoded, sizes: Sequence[tuple[int, int]], resized: Sequence[tuple[int, int]]) -> Encoded:
    """The ids with every coordinate as the digits that images of these sizes give it.

    Args:
        encoded: with a 0 for each coordinate.
        sizes: measured (height, width) of each image, px.
        resized: (height, width) of each image in the model, px.
    """
    slots, images, kinds = encoded.boxes[:, :3].astype(np.int64).T
    axes = 1 - (kinds & Y)
    natural, target = (np.array(values, np.float64).reshape(-1, 2)[images, axes] for values in (sizes, resized))
    shares = encoded.boxes[:, 3] / np.where(kinds & FRACTION, 1.0, natural)
    whole = np.where(kinds & ABSOLUTE, target, RELATIVE)
    numbers = np.clip(np.floor(shares * whole + 0.5), 0, whole).astype(np.int64)
    digits = [str(number) for number in numbers.tolist()]
    repeats = np.ones(len(encoded.ids), np.int64)
    repeats[slots] = [len(text) for text in digits]
    starts = np.concatenate(([0], np.cumsum(repeats)))
    ids = np.repeat(encoded.ids, repeats)
    for slot, text in zip(slots.tolist(), digits, strict=True):
        start = starts[slot]
        ids[start : start + len(text)] += np.array(list(map(int, text)), np.int32)
    return Encoded(ids, np.repeat(encoded.weights, repeats), starts[encoded.slots].astype(np.int32))
