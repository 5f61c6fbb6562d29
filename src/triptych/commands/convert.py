"""``triptych convert``: records of any shape that is read, written in the plainest one; run files of other tools.

    {"messages": [{"role", "content"}], "images": [...], "task", "id"}      <image> in a content is the next image

Every line is read again as it is written: it holds the turns and images of its record, or it is not written.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import IO, Any

import orjson

from triptych.commands.options import SourceOptions, refuse_to_overwrite
from triptych.compat.loading import open_for, to_yaml
from triptych.corpus.execution.executor import Engine
from triptych.errors import ConfigError, Origin, Problem, SampleError
from triptych.images import identity, measure, pixels
from triptych.images.geometry import Limits
from triptych.images.headers.first_bytes import INLINE
from triptych.images.traits import traits_of
from triptych.run.prepare import index_sources
from triptych.sources import members, storage
from triptych.sources.access import guarded
from triptych.sources.readers import read_records
from triptych.sources.records import ImageLimits, ImageRef, Record, Source
from triptych.sources.references import is_empty
from triptych.terminal import Terminal
from triptych.text.boxes import with_marks, written_objects
from triptych.text.conversation import Conversation, ConversationReader
from triptych.text.shapes.parts import LIMIT_KEYS, joined
from triptych.text.turns import MARK, Turn

ENDINGS = (".jsonl", ".ndjson")
IMAGE = {"type": "image"}
"""The part of a content that stands for the next image."""
COPIED = ("JPEG", "PNG", "WEBP")
"""Formats that every program reads."""
Plain = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Targets:
    """Where things are written."""

    to: Path
    """The JSONL file"""
    images: Path
    """Folder of images"""
    alike: bool
    """Whether every image is written, such that all programs read it alike; else only those inside other files."""


@dataclass(slots=True)
class Written:
    """What was written."""

    samples: int = 0
    images: int = 0
    files: int = 0
    """Images that were written as files of their own."""


def convert(
    data: Sequence[str],
    to: Path,
    *,
    source: SourceOptions | None = None,
    images: Path | None = None,
    engine: Engine | None = None,
) -> int:
    """Write the records of data files that are read without a problem; the others are shown as ``check`` shows them.

    Images keep their files; those inside Parquet, Arrow and tar files become files in a folder beside ``to``. A
    path is relative where the image lies below the folder of ``to``.

    Args:
        data: files and globs.
        to: the JSONL file to write.
        source: how the data files are read.
        images: folder to write every image to, such that every program reads it as training does.
        engine: where they are checked first; the cores of this machine by default.

    Returns:
        The exit status: 1 if a record was left out.

    Raises:
        ConfigError: if a data file is missing, or ``to`` cannot be written.
    """
    if not to.name.lower().endswith(ENDINGS):
        raise ConfigError(f"--to {str(to)!r}: what is written is JSON lines; name it {to.with_suffix('.jsonl').name}")
    read = (source or SourceOptions()).source(data)
    refuse_to_overwrite(read.files(), [to])
    out = Terminal()
    _, report = index_sources("checking", [read], None, out, engine)
    problems = list(report.problems)
    out.problems(report)
    left_out = {problem.origin for problem in problems}
    targets, written = Targets(to, images or to.with_name(f"{to.stem}_images"), images is not None), Written()
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(to) as file:
            for line in _lines(read, targets, left_out, written):
                if isinstance(line, Problem):
                    problems.append(line)
                    out.line(str(line))
                else:
                    file.write(line + b"\n")
    except OSError as error:
        raise ConfigError(f"cannot write {to}: {error.strerror or error}") from error
    out.line(_summary(targets, written, read, report.samples - written.samples))
    return 1 if problems else 0


def convert_run(run: Path, overrides: Sequence[str], to: Path | None, *, source: SourceOptions) -> None:
    """Write another tool's run file as one of Triptych's own, or print it; nothing else is read but what it names.

    Args:
        run: the run file.
        overrides: ``key=value``, in the names of its tool or of Triptych's settings.
        to: the YAML file to write; None for standard output.
        source: options for data files, of which a run file takes none.

    Raises:
        ConfigError: if it cannot be translated, is Triptych's own already, or ``to`` cannot be written.
    """
    if source.given():
        raise ConfigError(f"{', '.join(source.given())}: for data files; a run file says how its data is read")
    out = Terminal()
    opened = open_for(run, overrides, out)
    text = to_yaml(opened)
    if to is None:
        sys.stdout.write(text)
        return
    if to.exists():
        raise ConfigError(f"{to} is there already; choose another name, or remove it")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {to}: {error.strerror or error}") from error
    out.line(f"wrote {to}; next: triptych check {to}")


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of ``path`` when it is whole."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            yield file
        unfinished.replace(path)
    finally:
        with suppress(OSError):
            unfinished.unlink()


def _summary(targets: Targets, written: Written, source: Source, left_out: int) -> str:
    said = f"wrote {_count(written.samples, 'sample')} with {_count(written.images, 'image')} to {targets.to}"
    if written.files:
        said += f", {_count(written.files, 'image file')} to {targets.images}"
    if left_out > 0:
        said += f"; left out {left_out:,}"
    needed = ", ".join(f"`{name}: {value}`" for name, value in _still_needed(source).items())
    return f"{said}; in its source write {needed}" if needed else said


def _still_needed(source: Source) -> dict[str, Any]:
    """What of a source no record can say by itself."""
    needed: dict[str, Any] = {"roles": "keep"} if source.roles == "keep" else {}
    return {**needed, "supervise": "all"} if source.supervise == "all" else needed


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _lines(source: Source, targets: Targets, left_out: set[Origin], written: Written) -> Iterator[bytes | Problem]:
    """A line for each record that is read, in input order."""
    reader = ConversationReader(source)
    again = ConversationReader(Source(str(targets.to), **_still_needed(source)))
    for path in source.files():
        namer = _Namer(source, source.media_root(path), targets, written)
        for record in read_records(path):
            if isinstance(record, Problem) or record.origin in left_out:
                continue
            try:
                conversation = reader.read(record)
                names = [namer.name(ref) for ref in conversation.images]
            except (SampleError, measure.ImageError) as error:  # a file that changed since it was checked
                yield from _problems(error, record)
                continue
            plain = _plain(conversation, names, record, again)
            if plain is None:
                yield Problem("bad-shape", record.origin, "it cannot be written in the plain shape; it was left out")
                continue
            written.samples += 1
            written.images += len(names)
            yield plain


def _problems(error: SampleError | measure.ImageError, record: Record) -> Sequence[Problem]:
    if isinstance(error, SampleError):
        return error.problems
    return [Problem(error.code, record.origin, error.message)]


def _plain(conversation: Conversation, names: Sequence[str], record: Record, again: ConversationReader) -> bytes | None:
    """The line of one sample, which is read as the same sample; None if there is none."""
    for as_parts in (False, True):
        plain: Plain = {}
        if isinstance(record.data.get("id"), str | int):
            plain["id"] = record.data["id"]
        turns = (_marked(turn, conversation) for turn in conversation.turns)
        limits = [ref.limits for ref in conversation.images]
        plain["messages"] = [_message(turn, limits, as_parts=as_parts) for turn in turns]
        if conversation.tools:
            plain["tools"] = [json.loads(tool) for tool in conversation.tools]
        if names:
            plain["images"] = list(names)
        if conversation.task is not None:
            plain["task"] = conversation.task
        if conversation.objects:
            plain["objects"] = written_objects(conversation.objects)
        if conversation.weight != 1:
            plain["weight"] = conversation.weight
        try:
            line = orjson.dumps(plain)
            found = again.read(Record(orjson.loads(line), record.origin))
        except SampleError:
            continue  # a text that holds a mark: as a part, it is text
        except TypeError as error:
            raise ConfigError(f"{record.origin}: a name of an image is not UTF-8; rename it") from error
        same = [(ref.source, ref.limits) for ref in found.images] == list(zip(names, limits, strict=True))
        if same and _joined(found) == _joined(conversation):
            return line
    return None


def _marked(turn: Turn, conversation: Conversation) -> Turn:
    """A turn with its objects as marks."""
    if not conversation.objects:
        return turn
    parts = (with_marks(part, conversation.objects) if isinstance(part, str) else part for part in turn.parts)
    return replace(turn, parts=tuple(parts))


def _message(turn: Turn, limits: Limits, *, as_parts: bool) -> Plain:
    """A turn as an object; its content as a string with marks, or as parts."""
    content: Any = "".join(part if isinstance(part, str) else MARK for part in turn.parts)
    if as_parts:
        content = [
            _image_part(limits[part]) if isinstance(part, int) else {"type": "text", "text": part}
            for part in turn.parts
        ]
    message = {"role": turn.role, "content": content}
    if turn.thought:
        message["reasoning_content"] = turn.thought
    if turn.calls:
        functions = [{"name": call.name, "arguments": json.loads(call.arguments)} for call in turn.calls]
        message["tool_calls"] = [{"type": "function", "function": function} for function in functions]
    if turn.role != "assistant" or turn.weight == 1:
        return message
    return {**message, "weight": turn.weight} if turn.weight else {**message, "loss": False}


def _image_part(limits: ImageLimits | None) -> Plain:
    asked = zip(LIMIT_KEYS, () if limits is None else astuple(limits), strict=False)
    return {**IMAGE, **{key: value for key, value in asked if value}}


def _joined(conversation: Conversation) -> Conversation:
    """A conversation without the names of its images, neighbouring texts of a turn as one."""
    turns = (replace(turn, parts=joined(turn.parts)) for turn in conversation.turns)
    return replace(conversation, turns=tuple(turns), images=())


class _Namer:
    """Names images as a file in the folder of ``to`` does; writes those that have no file of their own, or all."""

    def __init__(self, source: Source, media_root: str, targets: Targets, written: Written) -> None:
        self._rules, self._media_root = identity.Rules.of(source), media_root
        self._targets, self._written = targets, written
        self._root = storage.absolute(str(targets.to.parent))
        self._known: dict[str, str] = {}

    def name(self, ref: ImageRef) -> str:
        """The name of an image.

        Raises:
            ImageError: if it is not there any more, or does not decode.
        """
        location = identity.locate(ref, self._media_root, self._rules)
        path = guarded.path_of(location)
        if location.startswith(identity.REFUSED):
            raise measure.ImageError(*orjson.loads(location.removeprefix(identity.REFUSED)))
        if self._targets.alike or path.startswith(members.PREFIX):
            key = identity.key(location)
            if key not in self._known:
                self._known[key] = self._relative(self._write(location))
            return self._known[key]
        return path if path.startswith(INLINE) or storage.is_remote(path) else self._relative(path)

    def _relative(self, path: str) -> str:
        name = path.removeprefix(f"{self._root}/")
        is_plain = not is_empty(name) and not name.startswith((INLINE, "[", "{", "file:", "base64:"))
        return name if is_plain and not storage.is_remote(name) else path

    def _write(self, location: str) -> str:
        folder = self._targets.images
        content, ending = _as_everyone_reads(location) if self._targets.alike else _as_stored(location)
        path = folder / f"{hashlib.sha256(content).hexdigest()[:24]}.{ending}"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            self._written.files += 1
        return storage.absolute(str(path))


def _as_stored(location: str) -> tuple[bytes, str]:
    """The bytes of an image as they are, and the ending of its format.

    Raises:
        ImageError: if it cannot be opened.
    """
    with measure.open_bytes(location) as file:
        content = file.read()
    with measure.opened(io.BytesIO(content), location) as image:
        return content, (image.format or "image").lower().replace("jpeg", "jpg")


def _as_everyone_reads(location: str) -> tuple[bytes, str]:
    """The bytes of a file that every program reads as training reads this image, and its ending.

    An everyday JPEG, PNG or WebP stays as it is. What is turned by EXIF, has transparency, grey of more than 8 bits, a
    palette, CMYK or several frames, or is of another format becomes an upright PNG in RGB.

    Raises:
        ImageError: if it cannot be decoded.
    """
    content, ending = _as_stored(location)
    with measure.opened(io.BytesIO(content), location) as image:
        is_plain = image.format in COPIED and image.mode in ("RGB", "L") and not traits_of(image)
        if is_plain and getattr(image, "n_frames", 1) == 1 and measure.turn(image) is None:
            return content, ending
    buffer = io.BytesIO()
    pixels.load_rgb(location).save(buffer, "PNG")
    return buffer.getvalue(), "png"
