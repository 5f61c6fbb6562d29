"""Parts of a content: text, or images."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from triptych.images.geometry import MAX_ASPECT
from triptych.sources.records import ImageLimits, ImageRef, json_type
from triptych.sources.references import (
    INLINE_KEYS,
    NAME_KEYS,
    NotAnImage,
    is_empty,
    read_images,
    says_which,
    written_value,
)
from triptych.text.shapes.found import ShapeError
from triptych.text.unread import unread_part_keys

_TEXT_TYPES = ("text", "input_text", "output_text")
_IMAGE_TYPES = ("image", "image_url", "input_image", "image_path", "image_base64", "image_file")
_OTHER_IMAGE_TYPES = ("img", "picture", "photo", "pic")
_PART_TEXT_KEYS = ("text", "value", "content", "input_text", "output_text")
_PART_IMAGE_KEYS = tuple(dict.fromkeys((*NAME_KEYS, *INLINE_KEYS)))
LIMIT_KEYS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
_PART_FORMS = 'a part is {"type": "text", "text"}, {"type": "image", "image"} or {"type": "image_url", "image_url"}'

Slot = ImageRef | tuple[str, int] | None
"""The image of a place in the text: one named there, one by its number (of a "mark" or "index"), or the next one."""


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
    if isinstance(kind, str):
        kind = _plain_kind(kind)
    if is_empty(kind):
        named = [key for key in images if key not in ("value", "content", "data")]
        kind = "image" if named else "text" if any(key in part for key in _PART_TEXT_KEYS) else None
    found: str | list[Slot]
    read = _PART_TEXT_KEYS if kind in _TEXT_TYPES else _PART_IMAGE_KEYS
    if kind in _TEXT_TYPES:
        found = _part_text(part)
    elif kind in _IMAGE_TYPES:
        found = _part_images(part, images, ignored)
    elif all(map(is_empty, part.values())):
        return ""  # a table pads lists of parts
    elif str(kind).removeprefix("input_") in ("video", "audio", "video_url", "audio_url"):
        raise ShapeError(f'has the type "{kind}", which is not supported: Triptych trains on text and images')
    else:
        keys = ", ".join(f"`{str(key)[:40]}`" for key in list(part)[:10]) or "no key"
        raise ShapeError(
            f"has {keys}{f' and the type {reprlib.repr(kind)}' if kind is not None else ''}; {_PART_FORMS}"
        )
    if len(part) > 1:
        sizes = () if kind in _TEXT_TYPES else LIMIT_KEYS
        for message in unread_part_keys(part, {*read, *sizes, "type", "index"}, ignored):
            raise ShapeError(f"cannot be read whole: {message}")
    return found


def written_parts(text: str, *, answer: bool) -> list[Any] | None:
    """The parts that a content holds as JSON text, as tables keep them; None for a text, also one that is JSON.

    Args:
        text: the content, which begins with a bracket.
        answer: whether the model says it: it may be asked for JSON, so that only plain text parts are taken for parts.
    """
    if "type" not in text[:2000]:
        return None
    parts = written_value(text)
    if not isinstance(parts, list) or not parts or not all(_is_part(part, answer=answer) for part in parts):
        return None
    return parts


def _is_part(part: Any, *, answer: bool) -> bool:
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        return False
    kind = _plain_kind(part["type"])
    filled = {key for key in part if not is_empty(part[key])}
    if kind in _TEXT_TYPES:
        return filled <= {"type", "text"}
    return kind in _IMAGE_TYPES and not answer and filled <= {"type", "index", *_PART_IMAGE_KEYS, *LIMIT_KEYS}


def _plain_kind(kind: str) -> str:
    """A type of parts as this module calls it: ``Image``, ``img`` and ``image/png`` are images."""
    name = kind.strip().lower()
    return "image" if name in _OTHER_IMAGE_TYPES or name.startswith("image/") else name


def joined(parts: Iterable[str | int]) -> tuple[str | int, ...]:
    """The parts of a turn, neighbouring texts as one."""
    found: list[str | int] = []
    for part in parts:
        last = found[-1] if found else None
        if isinstance(part, str) and isinstance(last, str):
            found[-1] = last + part
        else:
            found.append(part)
    return tuple(found)


def part_limits(part: Mapping[str, Any], ignored: Collection[str]) -> ImageLimits | None:
    """What an image part asks of its size, as Qwen's utilities spell it; None if nothing.

    Raises:
        ShapeError: if it cannot be asked.
    """
    given = {key: part[key] for key in LIMIT_KEYS if part.get(key) is not None and key not in ignored}
    if not given:
        return None
    for key, value in given.items():
        # Tables that hold a null write whole numbers as floats.
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**31 or value % 1:
            raise ShapeError(f"has a `{key}` that is no number of pixels: {reprlib.repr(value)}")
    low, high, height, width = (int(given.get(key, 0)) for key in LIMIT_KEYS)
    if (height > 0) != (width > 0):
        raise ShapeError("has one of `resized_height` and `resized_width`; give both")
    if low and high and low > high:
        raise ShapeError(f"has a `min_pixels` of {low:,} over its `max_pixels` of {high:,}")
    if height and max(height, width) > MAX_ASPECT * min(height, width):
        raise ShapeError(f"asks for {height} x {width} px: one side over {MAX_ASPECT} times the other")
    return ImageLimits(low, high, height, width)


def _part_text(part: Mapping[str, Any]) -> str:
    texts = [part[key] for key in _PART_TEXT_KEYS if part.get(key) is not None]
    if not texts:
        return ""
    text = texts[0]
    if not isinstance(text, str) or any(other != text for other in texts[1:] if other != ""):
        raise ShapeError(f"is a text that is {json_type(text)}; {_PART_FORMS}")
    return text


def _part_images(part: Mapping[str, Any], keys: Sequence[str], ignored: Collection[str]) -> list[Slot]:
    if keys:
        try:
            return list(read_images({key: part[key] for key in keys}))
        except NotAnImage as error:
            raise ShapeError(f"is an image, but {error}") from error
    number = part.get("index")
    if number is None:
        _refuse_other_numbers(part, ignored)
        return [None]  # the next of the record's images
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ShapeError(f"has an `index` that is no number of an image from 0: {reprlib.repr(number)}")
    return [("index", number)]


def _refuse_other_numbers(part: Mapping[str, Any], ignored: Collection[str]) -> None:
    for key, value in part.items():
        if key in ("type", "index") or key in ignored or isinstance(value, bool) or is_empty(value):
            continue
        if isinstance(value, int | float | str) and says_which(str(key)):
            raise ShapeError(
                f"is an image without a name, and `{key}` may say which one it is; write `index`, its number among "
                f"`images` from 0, or `ignore: [{key}]` in the source: they are taken in order"
            )
