"""What a value that names images looks like: by its type, by its key, by what its strings look like."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any

import orjson

from triptych.sources.records import Foreign, ImageRef, json_type

INLINE_KEYS = ("bytes", "base64", "b64", "b64_json", "image_base64", "image_b64", "image_bytes", "data")
"""Keys of an object that holds an image itself."""
NAME_KEYS = (
    *("image", "image_url", "input_image", "url", "path", "file", "source", "value", "img", "uri", "src", "href"),
    *("image_path", "img_path", "file_path", "filepath", "filename", "file_name", "image_file", "image_name"),
    *("local_path", "file_url", "file_uri", "media", "picture", "photo", "content"),
)
"""Keys of an object that names where an image is."""

_ENDINGS = ("jpg", "jpeg", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "heic", "heif", "avif", "ppm", "jp2")
_FILE = re.compile(rf"\S\.(?:{'|'.join(_ENDINGS)})(?:[?#]\S*)?\Z", re.IGNORECASE)
_MAGIC = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "SUkqA", "TU0AK")  # base64 of the first bytes of images
_BASE64 = re.compile(r"[A-Za-z0-9+/=_\s-]+\Z")


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_IMAGE_WORDS = _set(
    "image images img imgs picture pictures pic pics photo photos media medias screenshot screenshots thumbnail "
    "thumbnails frame frames jpg jpeg png pixel pixels"
)
_PLACE_WORDS = _set("list b64 base64 bytes path paths file files filename filenames name names url urls uri")
_ABOUT_WORDS = _set(
    "id ids idx uid uuid key index width widths height heights size sizes count counts num number no type types kind "
    "format formats mode modes caption captions title description text texts relation label labels category class "
    "hash md5 sha256 license source sources token tokens quality resolution tag tags dim dims area score scores rate "
    "fps order orientation split dataset domain grid thw style credit author date time timestamp timestamps meta "
    "metadata info similarity aspect ratio shape total topic language question answer box boxes bbox bboxes"
)
_WHICH_WORDS = _set("id idx index no nr num number position pos order ref reference name key slot uid uuid")
_HASH_WORDS = _set("hash phash dhash sha md crc digest checksum fingerprint uuid guid embedding embeddings vector")
_WHETHER_WORDS = _set("has is num n with no use needs count")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_EMPTY_TEXTS = frozenset(("", "[]", "{}", "null", "[null]", "none", "[none]", "nan", "[nan]", '""', '[""]'))
_OPENING = ("[", "{", "(")
_LOOKED_AT = 64
"""Items of a long list that are looked at."""
_DEPTH = 8


class NotAnImage(ValueError):
    """A value that should name images and does not: the message says what it is instead."""

    def __init__(self, message: str, image: int | None = None) -> None:
        super().__init__(message)
        self.image = image
        """1-based place among the images, where the value is a list"""


def is_empty(value: Any) -> bool:
    """Whether a value holds nothing: null, a blank string, or a list or object of such values, at any depth."""
    if value is None:
        return True
    if isinstance(value, str):
        return len(value) < 20 and value.strip().lower() in _EMPTY_TEXTS
    if isinstance(value, dict):
        return all(map(is_empty, value.values()))
    return isinstance(value, list | tuple) and all(map(is_empty, value))


def is_blank(value: Any) -> bool:
    """Whether a value holds no words: as ``is_empty``, but ``None`` and ``[]`` written in a text are words."""
    if isinstance(value, str):
        return not value or value.isspace()
    if isinstance(value, Mapping):
        return all(map(is_blank, value.values()))
    return value is None or (isinstance(value, list | tuple) and all(map(is_blank, value)))


def read_images(value: Any) -> list[ImageRef]:
    """The images that a value names, in order: a name, an object, or lists of them; what holds nothing is left out.

    Raises:
        NotAnImage: if it names none.
    """
    found: list[ImageRef] = []
    if isinstance(value, list):
        for number, item in enumerate(value, 1):
            if type(item) is str and item and item[0] not in "[{( \n\tnN":
                found.append(ImageRef(item))
                continue
            try:
                found += _read(item, 0)
            except NotAnImage as error:
                raise NotAnImage(str(error), number) from error
        return found
    return _read(value, 0)


def _read(value: Any, depth: int) -> list[ImageRef]:
    if isinstance(value, ImageRef):
        return [value]
    if isinstance(value, str):
        inner = written_value(value)
        if inner is not None and depth < _DEPTH:
            return _read(inner, depth + 1)
        return [] if is_empty(value) else [ImageRef(value)]
    if value is None:
        return []
    if depth >= _DEPTH:
        raise NotAnImage("an image is named by a string, this is nested too deep")
    if isinstance(value, list | tuple):
        return [image for item in value for image in _read(item, depth + 1)]
    if isinstance(value, Mapping):
        return _read_object(value, depth)
    raise NotAnImage(f"an image is named by a string, this is {json_type(value)}")


def _read_object(value: Mapping[str, Any], depth: int) -> list[ImageRef]:
    """An image as an object: ``{"bytes", "path"}``, ``{"url"}``, ``{"source": {"data"}}``, ..."""
    filled = {key: item for key, item in value.items() if not is_empty(item)}
    if not filled:
        return []
    if str(filled.get("type")) in ("video", "audio", "text"):
        raise NotAnImage(f'an object of type "{filled["type"]}" is no image')
    names: list[ImageRef] = []
    for key in NAME_KEYS:
        if key in filled:
            found = _read(filled[key], depth + 1)
            if names and found != names:
                raise NotAnImage(f"an object names two images, one of them under `{key}`; keep one of the keys")
            names = found
    for key in INLINE_KEYS:
        content = filled.get(key)
        if isinstance(content, ImageRef):
            return [content]
        if isinstance(content, str):
            # The bytes decide; a name beside them is only that.
            uri = inline(content)
            return [ImageRef(names[0].source, uri) if names else ImageRef(uri)]
        if content is not None:
            raise NotAnImage(f"`{key}` of an image is base64 text, this is {json_type(content)}")
    if not names:
        keys = ", ".join(f"`{str(key)[:40]}`" for key in sorted(map(str, filled))[:10])
        raise NotAnImage(f"an object with the keys {keys} names no image; write path, url or base64")
    return names


def inline(content: str) -> str:
    """The data URI of an image that is written in base64."""
    return content if content.startswith("data:") else f"data:image/png;base64,{''.join(content.split())}"


def written_value(text: str) -> Any:
    """The list or object that a string holds, as JSON or as Python writes it; None if it holds none."""
    start = text[:1] if text[:1] in _OPENING else text.lstrip()[:1]
    if start not in _OPENING or start == "":
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    if len(text) > 100_000 or not text.rstrip().endswith(("]", "}", ")")):
        return None
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, list | tuple | dict) else None


def is_reference(text: str) -> bool:
    """Whether a string looks like the name of an image file, an address of one, or an image in base64."""
    if text.startswith("data:image/"):
        return True
    if len(text) >= 64 and text.startswith(_MAGIC) and _BASE64.match(text[:400]):
        return True
    if len(text) > 2000 or "." not in text[-200:]:
        return False
    if any(character.isspace() for character in text) and not ("/" in text and "\n" not in text):
        return False
    return _FILE.search(text) is not None


@lru_cache(maxsize=4096)
def words_of(key: str) -> tuple[str, ...]:
    """The words of a key, in lower case: ``useForTraining`` is use, for, training."""
    return tuple(word.lower() for word in _WORD.findall(key[:200]))


@lru_cache(maxsize=4096)
def names_images(key: str) -> bool:
    """Whether a key says that it holds images: ``imgs``, ``leftImage``, ``image_2``; not ``image_id``."""
    words = [word for word in words_of(key) if not word.isdigit()]
    if not _IMAGE_WORDS.intersection(words) or words[0] in _WHETHER_WORDS:
        return False
    return words[-1] not in _ABOUT_WORDS


@lru_cache(maxsize=4096)
def _is_about(key: str) -> bool:
    words = [word for word in words_of(key) if not word.isdigit()]
    return bool(words) and words[-1] in _ABOUT_WORDS


@lru_cache(maxsize=4096)
def says_which(key: str) -> bool:
    """Whether a key says which of several things is meant: ``image_id``, ``position``."""
    return bool(_WHICH_WORDS.intersection(words_of(key)))


@lru_cache(maxsize=4096)
def _is_hash(key: str) -> bool:
    """Whether bytes under a key are short and say something about the record, as ``image_sha256`` does."""
    words = [word for word in words_of(key) if not word.isdigit()]
    return bool(words) and words[-1] in _HASH_WORDS


@lru_cache(maxsize=4096)
def _has_image_word(key: str) -> bool:
    return bool(_IMAGE_WORDS.intersection(words_of(key)))


def holds_images(key: str, value: Any, known: Collection[str]) -> bool:
    """Whether what is under a key that is not read would be an image lost.

    Args:
        key: its name.
        value: what is there, of any shape.
        known: names of the images that the record is read with; another name of one of them is no loss.
    """
    if isinstance(value, str) and not names_images(key) and not _may_refer(value):
        return False
    is_note = isinstance(value, str) or bool(known)
    return any(_lost(inner, name, known, is_note=is_note) for inner, name in _names_in(key, value, 0))


def _may_refer(text: str) -> bool:
    """A quick look: whether ``is_reference`` or a list in the string is possible at all."""
    return "." in text[-200:] or text[:1] in ("[", "{", "/", "i", "R", "U", "S", "T", "d")


def _lost(key: str, name: str | None, known: Collection[str], *, is_note: bool) -> bool:
    """Whether an image under ``key`` is one more than those known; ``is_note``: whether an id may look like one."""
    if name is None:
        return not _is_hash(key)
    if is_note and _is_about(key) and (known or not _has_image_word(key)):
        return False
    if known and name.startswith(("http://", "https://")) and not names_images(key):
        return False
    return not any(_same(name, other) for other in known)


def _same(name: str, other: str) -> bool:
    return name == other or name.endswith(f"/{other}") or other.endswith(f"/{name}")


def _names_in(key: str, value: Any, depth: int) -> Iterator[tuple[str, str | None]]:
    """(key, name) of the images in a value, the innermost key; None for an image without a name."""
    if value is None or isinstance(value, int | float) or depth >= _DEPTH:
        return
    if isinstance(value, ImageRef) or (isinstance(value, Foreign) and value.pixels and names_images(key)):
        yield key, None
    elif isinstance(value, str):
        inner = written_value(value) if value[:1] in ("[", "{") and len(value) < 100_000 else None
        if inner is not None:
            yield from _names_in(key, inner, depth + 1)
        elif is_reference(value) or (names_images(key) and _may_be_name(key, value)):
            yield key, value
    elif isinstance(value, Mapping):
        for child, item in value.items():
            child = str(child)
            inherits = names_images(key) and child.lower() in (*NAME_KEYS, *INLINE_KEYS)
            yield from _names_in(key if inherits else child, item, depth + 1)
    elif isinstance(value, list | tuple):
        if names_images(key) and _are_pixels(value):
            yield key, None
            return
        for item in value[:_LOOKED_AT]:
            yield from _names_in(key, item, depth + 1)


def _may_be_name(key: str, text: str) -> bool:
    """Whether a string under a key of images, without the ending of one, may still name one."""
    if is_empty(text) or text.lower() in ("true", "false", "yes", "no", "unknown", "n/a") or " " in text.strip():
        return False
    return len(text) >= 4 or bool(_PLACE_WORDS.intersection(words_of(key)))


def _are_pixels(value: Any) -> bool:
    for _ in range(3):
        if not isinstance(value, list) or not value:
            return False
        value = value[0]
    return isinstance(value, int | float)
