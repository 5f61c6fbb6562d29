"""JSON arrays and JSON lines of any size, plain or compressed: cut at element boundaries, parsed piece by piece.

A file that starts with ``[`` is one array (its elements are numbered from 1), anything else is read as JSON lines
(numbered by line; blank lines are skipped), whatever the name says. One object written over several lines is one
record. Cutting looks at structure only; no value is built before a worker reads its shard:

    [ {"a": [1, 2]} , {"b": "x, ]"} , {"c": 3} ]
                    |               |               cut at commas outside strings, at depth 0
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from triptych.errors import Origin, Problem
from triptych.sources import storage
from triptych.sources.records import Elements, Record, Shard, json_type, split_compression

SHARD_BYTES = 1 << 18
"""Size of a shard: some hundred records, a tenth of a second of tokenization."""
HEAD_BYTES = 1 << 20
"""Bytes in which a file shows its form, and one object over several lines its first line."""
MAX_ELEMENT = 1 << 28
"""Bytes of one element of an array; more means that brackets or quotes do not balance."""
MAX_OBJECT = 1 << 26
"""Bytes of a file that is tried as one object over several lines."""

_STEP = 1 << 16
"""Bytes that are uncompressed at once: a step that fails gives none of its bytes."""
_BOM = b"\xef\xbb\xbf"


def cut(path: str) -> Iterator[Shard]:
    """The shards of a file: byte ranges where it is plain and local, else the bytes themselves.

    Raises:
        OSError: if the file cannot be read.
    """
    with _Text(path) as text:
        head = text.read(HEAD_BYTES)
        first = head.removeprefix(_BOM).lstrip()[:1]
        if first == b"{" and (whole := _one_object(text, head)) is not None:
            yield Shard(path, 0, len(whole), "object", whole, text.defect, text.progress())
            return
    with _Text(path) as text:
        if first == b"[":
            yield from _cut_array(path, text)
        elif text.plain:
            size = text.raw.seek(0, 2)
            # Workers find the line ends at the edges themselves: a plain file is cut without reading it.
            for start in range(0, size, SHARD_BYTES):
                end = min(start + SHARD_BYTES, size)
                yield Shard(path, start, end, "lines", weight=end - start)
        else:
            yield from _cut_lines(path, text)


def read(shard: Shard) -> Elements:
    """The records of one shard.

    Raises:
        OSError: if the file cannot be read.
    """
    if shard.form == "lines":
        elements = _read_lines(shard)
    elif shard.form == "array":
        elements = _read_array(shard)
    else:
        assert shard.content is not None
        content = shard.content.removeprefix(_BOM)
        line = content[: len(content) - len(content.lstrip())].count(b"\n") + 1
        elements = Elements([Record(orjson.loads(content), Origin(shard.path, line))], 1)
    if shard.defect is not None:
        elements.records.append(Problem("bad-shape", Origin(shard.path, 0), shard.defect))
    return elements


class _Text:
    """The uncompressed bytes of a file, read from the start."""

    def __init__(self, path: str) -> None:
        _, self._compression = split_compression(path)
        self.plain = self._compression is None and not storage.is_remote(path)
        self.raw = storage.open_binary(path)
        self._path = path
        self._stream = self._uncompressed(self.raw)
        self._position = 0
        self._seen = 0
        self.defect: str | None = None
        """What ended reading before the end of the file."""

    def __enter__(self) -> _Text:
        return self

    def __exit__(self, *_: object) -> None:
        self.raw.close()

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes; fewer at the end, or where a compressed file is damaged."""
        pieces = []
        while size > 0 and self.defect is None:
            try:
                piece = self._stream.read(size if self._compression is None else min(size, _STEP))
            except OSError as error:
                if self._compression is None or error.errno is not None:
                    raise  # the disk or the network; damaged content has no number
                self.defect = f"the compressed file is damaged or cut off ({error}): nothing behind this was read"
                piece = self._in_front_of_damage()
            if not piece:
                break
            pieces.append(piece)
            size -= len(piece)
            self._position += len(piece)
        return b"".join(pieces)

    def _uncompressed(self, file: IO[bytes]) -> Any:
        return pa.CompressedInputStream(file, self._compression) if self._compression else file

    def _in_front_of_damage(self) -> bytes:
        """What the step that failed could have given; read anew, as a stream that failed goes no further."""
        with storage.open_binary(self._path) as file:
            stream = self._uncompressed(file)
            for start in range(0, self._position, _STEP):
                stream.read(min(_STEP, self._position - start))
            found = bytearray()
            try:
                while byte := stream.read(1):
                    found += byte
            except OSError:
                return bytes(found)
        return bytes(found)

    def progress(self) -> int:
        """Bytes of the file, as stored, that were read since the last call."""
        before, self._seen = self._seen, self.raw.tell()
        return self._seen - before


def _one_object(text: _Text, head: bytes) -> bytes | None:
    """The whole file, if it is one object written over several lines."""
    line, newline, _ = head.removeprefix(_BOM).lstrip().partition(b"\n")
    if not newline or _parses(line):
        return None
    whole = head + text.read(MAX_OBJECT)
    return whole if len(whole) < MAX_OBJECT and _parses(whole.removeprefix(_BOM)) else None


def _parses(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _cut_lines(path: str, text: _Text) -> Iterator[Shard]:
    """Pieces of whole lines, of a file that cannot be entered in the middle."""
    carried: list[bytes] = []
    offset = 0
    while block := text.read(SHARD_BYTES):
        end = block.rfind(b"\n") + 1
        if not end:
            carried.append(block)
            continue
        content = b"".join([*carried, block[:end]])
        yield Shard(path, offset, offset + len(content), "lines", content, weight=text.progress())
        offset += len(content)
        carried = [block[end:]]
    content = b"".join(carried)
    if content or text.defect:
        yield Shard(path, offset, offset + len(content), "lines", content, text.defect, text.progress())


def _cut_array(path: str, text: _Text) -> Iterator[Shard]:
    """Pieces of whole elements, the commas between them left out."""
    buffer = text.read(SHARD_BYTES)
    while b"[" not in buffer:
        buffer += text.read(SHARD_BYTES)
    offset = buffer.index(b"[") + 1
    buffer = buffer[offset:]
    any_element = False

    def shard(length: int, defect: str | None = None) -> Shard:
        content = None if text.plain else buffer[:length]
        return Shard(path, offset, offset + length, "array", content, defect, text.progress())

    while True:
        commas, close = _structure(buffer)
        if close >= 0:
            if any_element or len(commas) or buffer[:close].strip():
                yield shard(close)
            offset += close
            if buffer[close : close + 1] != b"]":
                yield shard(0, f"brackets do not match at byte {offset:,}: nothing behind it was read")
            elif not _only_blank(buffer[close + 1 :], text):
                yield shard(0, "there is text behind the end of the array; it was not read")
            elif text.defect:
                yield shard(0, text.defect)
            return
        if len(commas):
            yield shard(int(commas[-1]))
            any_element = True
            offset += int(commas[-1]) + 1
            buffer = buffer[int(commas[-1]) + 1 :]
        if len(buffer) > MAX_ELEMENT:
            yield shard(0, f"an element is over {MAX_ELEMENT:,} bytes: brackets or quotes do not balance behind here")
            return
        more = text.read(max(SHARD_BYTES, len(buffer)))
        if not more:
            yield shard(len(buffer), text.defect or "the array is not closed: the file is cut off")
            return
        buffer += more


def _only_blank(behind: bytes, text: _Text) -> bool:
    while not behind.strip():
        behind = text.read(SHARD_BYTES)
        if not behind:
            return True
    return False


def _structure(text: bytes) -> tuple[NDArray[np.intp], int]:
    """(positions of the commas at depth 0, position of the bracket that closes the array around or -1) of a piece
    that begins between two elements.
    """
    data = np.frombuffer(text, np.uint8)
    folded = data | 0x20  # [ and {, ] and } become the same
    at = np.flatnonzero((folded == 0x22) | (folded == 0x2C) | (folded == 0x7B) | (folded == 0x7D))
    kinds = data[at]
    quotes = kinds == 0x22
    behind_backslash = np.flatnonzero(quotes & (data[at - 1] == 0x5C) & (at > 0))
    for place in behind_backslash.tolist():
        if _backslashes(text, int(at[place])) % 2:
            quotes[place] = False  # an escaped quote ends no string
    outside = ~(quotes | (np.cumsum(quotes) & 1).astype(np.bool_))
    at, kinds = at[outside], kinds[outside]
    opening, closing = (kinds == 0x5B) | (kinds == 0x7B), (kinds == 0x5D) | (kinds == 0x7D)
    depth = np.cumsum(opening.astype(np.int64) - closing)
    ends = np.flatnonzero(depth < 0)
    last = int(ends[0]) if len(ends) else len(at)
    commas = at[:last][(kinds[:last] == 0x2C) & (depth[:last] == 0)]
    return commas, int(at[last]) if len(ends) else -1


def _backslashes(text: bytes, end: int) -> int:
    """Backslashes directly in front of ``end``."""
    start = end
    while start and text[start - 1] == 0x5C:
        start -= 1
    return end - start


def _read_lines(shard: Shard) -> Elements:
    content = _whole_lines(shard) if shard.content is None else shard.content
    if shard.start == 0:
        content = content.removeprefix(_BOM)
    lines = content.split(b"\n")
    count = len(lines) - (not lines[-1])
    records: list[Record | Problem] = []
    for number, line in enumerate(lines, 1):
        if not line or line.isspace():
            continue
        origin = Origin(shard.path, number)
        try:
            records.append(_record(orjson.loads(line), origin))
        except orjson.JSONDecodeError as error:
            message = f"not valid JSON at column {error.colno}: {_reason(error)}"
            records.append(Problem("bad-shape", origin, message))
    return Elements(records, count)


def _whole_lines(shard: Shard) -> bytes:
    """The lines that begin inside the shard's range; the last one may end behind it."""
    with storage.open_binary(shard.path) as file:
        start = shard.start
        if start:
            # A line begins at `start` only if the byte in front ends one.
            file.seek(start - 1)
            block = file.read(shard.end - start + 1)
            begin = block.find(b"\n") + 1
            if not begin or start - 1 + begin >= shard.end:
                return b""
            block = block[begin:]
        else:
            block = file.read(shard.end)
        pieces = [block]
        while not pieces[-1].endswith(b"\n"):
            more = file.read(SHARD_BYTES)
            if not more:
                break
            end = more.find(b"\n") + 1
            pieces.append(more[:end] if end else more)
        return b"".join(pieces)


def _read_array(shard: Shard) -> Elements:
    content = shard.content
    if content is None:
        with storage.open_binary(shard.path) as file:
            file.seek(shard.start)
            content = file.read(shard.end - shard.start)
    if not content.strip():
        return _one_by_one(shard, content) if shard.defect is None else Elements([], 0)
    try:
        elements = orjson.loads(b"[%b]" % content)
    except orjson.JSONDecodeError:
        return _one_by_one(shard, content)
    records = [_record(element, Origin(shard.path, number)) for number, element in enumerate(elements, 1)]
    return Elements(records, len(records))


def _one_by_one(shard: Shard, content: bytes) -> Elements:
    """The elements of a piece of which at least one is not valid JSON."""
    commas, _ = _structure(content)
    edges = [-1, *commas.tolist(), len(content)]
    records: list[Record | Problem] = []
    for number in range(1, len(edges)):
        start = edges[number - 1] + 1
        piece = content[start : edges[number]]
        origin = Origin(shard.path, number)
        try:
            records.append(_record(orjson.loads(piece), origin))
        except orjson.JSONDecodeError as error:
            reason = _reason(error) if piece.strip() else "a comma without an element behind it"
            message = f"not valid JSON: {reason} (in the element from byte {shard.start + start:,} of the file)"
            records.append(Problem("bad-shape", origin, message))
    return Elements(records, len(records))


def _reason(error: orjson.JSONDecodeError) -> str:
    # The parser's words for bytes that are not UTF-8 speak of surrogates.
    return "the text is not UTF-8" if "UTF-8" in error.msg else error.msg


def _record(element: Any, origin: Origin) -> Record | Problem:
    if isinstance(element, dict):
        return Record(element, origin)
    return Problem("bad-shape", origin, f"a sample is a JSON object, this is {json_type(element)}")
