"""Read JSON arrays and JSON lines into records that remember their file and line."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from triptych.errors import ConfigError, Origin, Problem

EXTENSIONS = (".json", ".jsonl")


@dataclass(frozen=True, slots=True)
class Source:
    """One or more data files that share an image folder and a naming of their keys."""

    path: str | tuple[str, ...]
    """A file, a glob, or several of either."""
    media_dir: str | None = None
    """Folder that relative image paths start from; None means the folder of each data file."""
    confine: bool = False
    """Refuse images that lie outside ``media_dir`` (code ``image-outside``)."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Names of the record's keys where they differ: ``{"conversations": "dialog", "images": "pictures"}``."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Names inside a turn where they differ: ``{"role": "speaker", "content": "text", "user": "U"}``."""

    def files(self) -> list[str]:
        """The data files in a stable order, each once.

        Raises:
            ConfigError: if a path or glob matches nothing, or a file has an extension that is not read.
        """
        patterns = (self.path,) if isinstance(self.path, str) else self.path
        files: dict[str, None] = {}
        for pattern in patterns:
            found = _matching(pattern)
            if not found:
                raise ConfigError(f"no data file matches {pattern!r}")
            for name in found:
                if os.path.isdir(name):
                    raise ConfigError(f"{name!r} is a folder; name its files, for example {name}/*.jsonl")
                if not name.endswith(EXTENSIONS):
                    raise ConfigError(f"{name!r}: data files end in {' or '.join(EXTENSIONS)}")
                try:
                    os.path.abspath(name).encode()
                except UnicodeEncodeError as error:
                    raise ConfigError(f"{name!r}: the name is not UTF-8; rename the file or its folder") from error
                files[name] = None
        return list(files)

    def media_root(self, data_file: str) -> str:
        """Folder that the relative image paths of ``data_file`` start from."""
        return self.media_dir if self.media_dir is not None else os.path.dirname(data_file)


def _matching(pattern: str) -> list[str]:
    if "\0" in pattern:  # `glob` raises
        return []
    return [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))


@dataclass(frozen=True, slots=True)
class Record:
    """One element of a data file, as found."""

    data: dict[str, Any]
    origin: Origin


def read_records(path: str) -> Iterator[Record | Problem]:
    """Yield every element of ``path`` in file order; what is not a JSON object becomes a ``bad-shape`` problem.

    A file that starts with ``[`` is one array (its elements are numbered from 1), anything else is read as JSON
    lines (numbered by line; blank lines are skipped), whatever the extension says. One object written over several
    lines is one record.

    Raises:
        ConfigError: if the file cannot be read at all.
    """
    try:
        with open(path, "rb") as file:
            content = file.read().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise ConfigError(f"cannot read {path!r}: {error.strerror}") from error
    if content.lstrip()[:1] == b"[":
        yield from _read_array(path, content)
    else:
        yield from _read_lines(path, content)


def _read_array(path: str, content: bytes) -> Iterator[Record | Problem]:
    try:
        elements: Sequence[Any] = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        message = f"not valid JSON at {place}: {_reason(error)}; nothing of it was read"
        yield Problem("bad-shape", Origin(path, 0), message)
        return
    for number, element in enumerate(elements, 1):
        yield _record(element, Origin(path, number))


def _read_lines(path: str, content: bytes) -> Iterator[Record | Problem]:
    first = True
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        origin = Origin(path, number)
        try:
            element = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            if first and (single := _single_object(content)) is not None:
                yield Record(single, origin)
                return
            first = False
            yield Problem("bad-shape", origin, f"not valid JSON at column {error.colno}: {_reason(error)}")
            continue
        first = False
        yield _record(element, origin)


def _single_object(content: bytes) -> dict[str, Any] | None:
    """The one object that the whole file is, written over several lines."""
    try:
        element = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    return element if isinstance(element, dict) else None


def _reason(error: orjson.JSONDecodeError) -> str:
    # The parser's words for bytes that are not UTF-8 speak of surrogates.
    return "the text is not UTF-8" if "UTF-8" in error.msg else error.msg


def _record(element: Any, origin: Origin) -> Record | Problem:
    if isinstance(element, dict):
        return Record(element, origin)
    return Problem("bad-shape", origin, f"a sample is a JSON object, this is {json_type(element)}")


def json_type(value: Any) -> str:
    """How a message names the JSON type of ``value``, with its article."""
    if value is None:
        return "null"
    names: dict[type, str] = {bool: "true or false", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")
