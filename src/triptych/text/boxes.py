"""Names and boxes that a record keeps beside its text, and the marks that they take the place of.

    {"objects": {"ref": ["sheep"], "bbox": [[10, 20, 30, 40]], "image_id": [0], "bbox_type": "real"}}

In a conversation, each mark is a character of its own, whose number says which object it is; ``box_filling`` writes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from triptych.sources.records import json_type
from triptych.sources.references import is_empty, written_value
from triptych.text.shapes.found import ShapeError

KEYS = ("ref", "bbox", "image_id", "bbox_type")
NAME_MARK, BOX_MARK = "<ref-object>", "<bbox>"
OBJECT, NUMBER = 0xF0000, 0x100000
"""First characters of two planes of private use: that of object k, and that of coordinate k, of a conversation."""
MOST = 0xFFFD
"""Characters of such a plane"""
_MARKS = re.compile(f"{NAME_MARK}|{BOX_MARK}")
_PRIVATE = re.compile(f"[{chr(OBJECT)}-{chr(NUMBER + MOST)}]")
OBJECTS = re.compile(f"[{chr(OBJECT)}-{chr(OBJECT + MOST)}]")


@dataclass(frozen=True, slots=True)
class Box:
    """A box, point or polygon of one image."""

    numbers: tuple[float, ...]
    """x, y, x, y, ..."""
    image: int
    """Which image of the conversation, in reading order"""
    fraction: bool
    """Whether the numbers are fractions of the image's sides, instead of pixels of it as it is displayed"""


@dataclass(slots=True)
class Objects:
    """What ``objects`` of a record names and frames, and what of it the text has taken."""

    names: list[str] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    placed: bool = False
    """Whether it says of which image each box is"""
    taken: list[str | Box] = field(default_factory=list)
    """In the order of the text"""
    marks: tuple[int, int] = (0, 0)
    """Marks of names and of boxes in the text"""

    def fill(self, text: str) -> str:
        """A text of the record with a character of its own for each mark.

        Raises:
            ShapeError: if it holds such characters already.
        """
        if _PRIVATE.search(text):
            raise ShapeError("a text beside `objects` holds characters of private use (U+F0000 and up); remove them")
        return _MARKS.sub(self._take, text)

    def _take(self, mark: re.Match[str]) -> str:
        is_box = mark[0] == BOX_MARK
        place = self.marks[is_box]
        self.marks = (self.marks[0] + (not is_box), self.marks[1] + is_box)
        there: Sequence[str | Box] = self.boxes if is_box else self.names
        if place >= len(there) or len(self.taken) > MOST:
            return mark[0]
        self.taken.append(there[place])
        return chr(OBJECT + len(self.taken) - 1)

    def mismatch(self, images: int) -> str | None:
        """That marks and objects are not as many, or boxes are of no image, and what to do; None where all is well.

        Args:
            images: how many the record has.
        """
        if self.boxes and not self.placed and images > 1:
            return f"`objects` has no `image_id`, and the record {images} images: say of which each box is, from 0"
        wrong = next((box.image for box in self.boxes if box.image >= images), None)
        if wrong is not None:
            return f"a box of `objects` is of image {wrong}, counted from 0, and the record has {images}"
        counts = (("ref", NAME_MARK, len(self.names)), ("bbox", BOX_MARK, len(self.boxes)))
        for (key, mark, there), found in zip(counts, self.marks, strict=True):
            if found != there:
                advice = "give each one mark, or write `ignore: [objects]` in the source to leave them out"
                return f"{found} {mark} marks in the text but {there} under `{key}` of `objects`; {advice}"
        return None


def read_objects(value: Any) -> Objects:
    """What ``objects`` of a record holds.

    Raises:
        ShapeError: if it holds something else.
    """
    value = written_value(value) if isinstance(value, str) else value
    if not isinstance(value, Mapping):
        raise ShapeError(f"`objects` is {{ref, bbox, image_id, bbox_type}}, this is {json_type(value)}")
    unknown = [str(key)[:40] for key, item in value.items() if key not in KEYS and not is_empty(item)]
    if unknown:
        raise ShapeError(f"`objects` holds `{unknown[0]}`, which is not read; its keys are {', '.join(KEYS)}")
    names, boxes, places = (_listed(value, key) for key in ("ref", "bbox", "image_id"))
    kind = value.get("bbox_type") or "real"
    if kind not in ("real", "norm1"):
        raise ShapeError(f"`bbox_type` of `objects` is real (pixels) or norm1 (0 to 1), this is {str(kind)[:20]!r}")
    if not all(isinstance(name, str) for name in names):
        raise ShapeError("`ref` of `objects` is a list of strings")
    if places and len(places) != len(boxes):
        raise ShapeError(
            f"`objects` has {len(boxes)} under `bbox` and {len(places)} under `image_id`; give each box one"
        )
    for place in places:
        if isinstance(place, bool) or not isinstance(place, int) or place < 0:
            raise ShapeError(f"`image_id` of `objects` is the number of an image from 0, this is {str(place)[:20]}")
    found = [
        _box(box, place, fraction=kind == "norm1") for box, place in zip(boxes, places or [0] * len(boxes), strict=True)
    ]
    return Objects(list(names), found, bool(places))


def _listed(value: Mapping[str, Any], key: str) -> list[Any]:
    found = value.get(key)
    if found is None:
        return []
    if not isinstance(found, list):
        raise ShapeError(f"`{key}` of `objects` is a list, this is {json_type(found)}")
    return found


def _box(value: Any, image: int, *, fraction: bool) -> Box:
    if not isinstance(value, list) or len(value) < 2 or len(value) % 2:
        raise ShapeError(f"a box is [x1, y1, x2, y2], a point [x, y]; this is {str(value)[:40]}")
    for number in value:
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ShapeError(f"a box is a list of numbers, one of them is {json_type(number)}")
    if len(value) == 4 and (value[2] < value[0] or value[3] < value[1]):
        raise ShapeError(
            f"a box is [x1, y1, x2, y2] from its top left to its bottom right; {str(value)[:60]} is not: if these are "
            "x, y, width and height, add the first two to the last two"
        )
    return Box(tuple(map(float, value)), image, fraction)


def written_objects(objects: Sequence[str | Box]) -> dict[str, Any]:
    """``objects`` of a record that is read as these."""
    boxes = [item for item in objects if isinstance(item, Box)]
    found: dict[str, Any] = {"ref": [item for item in objects if isinstance(item, str)]}
    found |= {"bbox": [list(box.numbers) for box in boxes], "image_id": [box.image for box in boxes]}
    return found | ({"bbox_type": "norm1"} if any(box.fraction for box in boxes) else {})


def with_marks(text: str, objects: Sequence[str | Box]) -> str:
    """A text of a conversation as a record writes it."""
    return OBJECTS.sub(lambda found: BOX_MARK if isinstance(objects[ord(found[0]) - OBJECT], Box) else NAME_MARK, text)
