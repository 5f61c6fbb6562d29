"""JSON arrays and JSON lines of any size, plain or compressed: cut at element boundaries, parsed piece by piece.

A file that starts with ``[`` is one array (its elements are numbered from 1), anything else is read as JSON lines
(numbered by line; blank lines are skipped), whatever the name says. One object written over several lines is one
record; lists of records, as elements or on lines, are taken apart. Cutting looks at structure only; no value is built
before a worker reads its shard:

    [ {"a": [1, 2]} , {"b": "x, ]"} , {"c": 3} ]
                    |               |               cut at commas outside strings, at depth 0
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from triptych.errors import Origin, Problem
from triptych.sources import storage
from triptych.sources.records import Elements, Record, Shard
from triptych.sources.text_files.doubled_keys import DoubledKeyError, may_be_doubled, refuse_doubled
from triptych.sources.text_files.elements import loads, parses, reason, records_of, wrong_form
from triptych.sources.text_files.other_content import what_it_holds
from triptych.sources.text_files.text import BOM, MAX_RECORD, Text, sniff

SHARD_BYTES = 1 << 18
"""Size of a shard: some hundred records, a tenth of a second of tokenization."""
HEAD_BYTES = 1 << 20
"""Bytes in which a file shows its form, and one object over several lines its first line."""
MAX_OBJECT = 1 << 26
"""Bytes of a file that is tried as one object over several lines."""


_TOO_LONG = f"a line is over {MAX_RECORD:,} bytes"


def cut(path: str) -> Iterator[Shard]:
    """The shards of a file: byte ranges where it is plain and local, else the bytes themselves.

    Raises:
        OSError: if the file cannot be read.
    """
    with Text(path) as text:
        encoding = sniff(text.read(4))
    with Text(path, encoding) as text:
        head = text.read(HEAD_BYTES)
        begin = head.removeprefix(BOM).lstrip()
        form = begin[:1]
        refused = wrong_form(begin, path) if form == b"{" else _no_json(form, head)
        if refused is not None:
            yield Shard(path, 0, 0, "lines", b"", refused, (storage.stamp(path) or (0, 0))[0])
            return
        if form == b"{" and (whole := _one_object(text, head)) is not None:
            yield Shard(path, 0, len(whole), "object", whole, text.defect, text.progress())
            return
    with Text(path, encoding) as text:
        if form == b"[" and not _is_list_by_line(begin):
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
        content = shard.content.removeprefix(BOM)
        line = content[: len(content) - len(content.lstrip())].count(b"\n") + 1
        elements = Elements([_one_record(content, Origin(shard.path, line))], 1)
    if shard.defect is not None:
        elements.records.append(Problem("bad-shape", Origin(shard.path, 0), shard.defect))
    return elements


def _one_record(content: bytes, origin: Origin) -> Record | Problem:
    value = loads(content)
    try:
        if may_be_doubled(content, [value]):
            refuse_doubled(content)
    except DoubledKeyError as error:
        return Problem("bad-shape", origin, str(error))
    return Record(value, origin)


def _no_json(form: bytes, head: bytes) -> str | None:
    """What is said of a file that does not begin as JSON does, where its first bytes show what it is."""
    held = what_it_holds(head) if form != b"[" else None
    return f"the file holds no JSON: it is {held}" if held is not None else None


def _one_object(text: Text, head: bytes) -> bytes | None:
    """The whole file, if it is one object written over several lines."""
    line, newline, _ = head.removeprefix(BOM).lstrip().partition(b"\n")
    if not newline or parses(line):
        return None
    whole = head + text.read(MAX_OBJECT)
    return whole if len(whole) < MAX_OBJECT and parses(whole.removeprefix(BOM)) else None


def _is_list_by_line(begin: bytes) -> bool:
    """Whether a file that starts with ``[`` has a list on each line, instead of being one."""
    line, _, rest = begin.partition(b"\n")
    return bool(rest.strip()) and parses(line)


def _cut_lines(path: str, text: Text) -> Iterator[Shard]:
    """Pieces of whole lines, of a file that cannot be entered in the middle."""
    carried: list[bytes] = []
    offset = 0
    while block := text.read(SHARD_BYTES):
        end = block.rfind(b"\n") + 1
        if not end:
            carried.append(block)
            if len(carried) * SHARD_BYTES > MAX_RECORD:
                yield Shard(path, offset, offset, "lines", b"", f"{_TOO_LONG}; it and what follows was not read")
                return
            continue
        content = b"".join([*carried, block[:end]])
        yield Shard(path, offset, offset + len(content), "lines", content, weight=text.progress())
        offset += len(content)
        carried = [block[end:]]
    content = b"".join(carried)
    if content or text.defect:
        yield Shard(path, offset, offset + len(content), "lines", content, text.defect, text.progress())


def _cut_array(path: str, text: Text) -> Iterator[Shard]:
    """Pieces of whole elements, the commas between them left out."""
    buffer = text.read(SHARD_BYTES)
    while b"[" not in buffer:
        buffer += text.read(SHARD_BYTES)
    offset = buffer.index(b"[") + 1
    line = 1 + buffer[:offset].count(b"\n")
    buffer = buffer[offset:]
    any_element = False

    def shard(length: int, defect: str | None = None) -> Shard:
        content = None if text.plain else buffer[:length]
        return Shard(path, offset, offset + length, "array", content, defect, text.progress(), line)

    while True:
        commas, close = _structure(buffer)
        if close >= 0:
            if any_element or len(commas) or buffer[:close].strip():
                yield shard(close)
            offset += close
            if buffer[close : close + 1] != b"]":
                yield shard(0, f"brackets do not match at byte {offset:,}: nothing after it was read")
            elif not _only_blank(buffer[close + 1 :], text):
                yield shard(0, "there is text after the end of the array; it was not read")
            elif text.defect:
                yield shard(0, text.defect)
            return
        if len(commas):
            yield shard(int(commas[-1]))
            any_element = True
            offset += int(commas[-1]) + 1
            line += buffer[: int(commas[-1]) + 1].count(b"\n")
            buffer = buffer[int(commas[-1]) + 1 :]
        if len(buffer) >= MAX_RECORD:
            yield shard(0, f"an element is over {MAX_RECORD:,} bytes: brackets or quotes do not balance after here")
            return
        more = text.read(max(SHARD_BYTES, len(buffer)))
        if not more:
            yield shard(len(buffer), text.defect or "the array is not closed: the file is cut off")
            return
        buffer += more


def _only_blank(behind: bytes, text: Text) -> bool:
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
    content, too_long = (shard.content, False) if shard.content is not None else _whole_lines(shard)
    if shard.start == 0:
        content = content.removeprefix(BOM)
    lines = content.split(b"\n")
    count = len(lines) - (not lines[-1])
    records, values = _records_of_lines(lines, shard.path)
    if may_be_doubled(content, values):
        records, _ = _records_of_lines(lines, shard.path, once=True)
    if too_long:
        records.append(Problem("bad-shape", Origin(shard.path, count + 1), f"{_TOO_LONG}; it was not read"))
    return Elements(records, count + too_long)


def _records_of_lines(
    lines: Sequence[bytes], path: str, *, once: bool = False
) -> tuple[list[Record | Problem], list[Any]]:
    """The records of lines, and what was parsed; ``once``: refuse objects that have a key twice."""
    records: list[Record | Problem] = []
    values: list[Any] = []
    for number, line in enumerate(lines, 1):
        if not line or line.isspace():
            continue
        origin = Origin(path, number)
        try:
            value = loads(line)
            if once:
                refuse_doubled(line)
            values.append(value)
            records += records_of(value, origin)
        except orjson.JSONDecodeError as error:
            message = f"not valid JSON at column {error.colno}: {reason(error, line, path)}"
            records.append(Problem("bad-shape", origin, message))
        except DoubledKeyError as error:
            records.append(Problem("bad-shape", origin, str(error)))
    return records, values


def _whole_lines(shard: Shard) -> tuple[bytes, bool]:
    """The lines that begin inside the shard's range, and whether one more does that is longer than any may be; the last
    one may end after the range.
    """
    with storage.open_binary(shard.path) as file:
        start = shard.start
        if start:
            # A line begins at `start` only if the byte in front ends one.
            file.seek(start - 1)
            block = file.read(shard.end - start + 1)
            begin = block.find(b"\n") + 1
            if not begin or start - 1 + begin >= shard.end:
                return b"", False
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
            if len(pieces) * SHARD_BYTES > MAX_RECORD:
                return block[: block.rfind(b"\n") + 1], True
        return b"".join(pieces), False


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
    if may_be_doubled(content, elements):
        return _one_by_one(shard, content)
    lines = _lines_of(shard, content)
    records: list[Record | Problem] = []
    for number, element in enumerate(elements, 1):
        origin = Origin(shard.path, number, lines[number - 1] if lines else 0)
        if type(element) is dict:
            records.append(Record(element, origin))
        else:
            records += records_of(element, origin)
    return Elements(records, len(elements))


def _lines_of(shard: Shard, content: bytes) -> Sequence[int]:
    """The line of the file in which each element of a piece of an array begins; none where all is on the first."""
    if shard.line == 1 and b"\n" not in content:
        return ()
    commas, _ = _structure(content)
    data = np.frombuffer(content, np.uint8)
    ink, newlines = np.flatnonzero(data > 0x20), np.flatnonzero(data == 0x0A)
    if not len(ink):
        return [shard.line] * (len(commas) + 1)
    starts = np.concatenate(([0], commas + 1))
    begins = ink[np.minimum(np.searchsorted(ink, starts), len(ink) - 1)]
    lines: list[int] = (shard.line + np.searchsorted(newlines, begins)).tolist()
    return lines


def _one_by_one(shard: Shard, content: bytes) -> Elements:
    """The elements of a piece of which at least one is not valid JSON, or may have a key twice."""
    commas, _ = _structure(content)
    edges = [-1, *commas.tolist(), len(content)]
    lines = _lines_of(shard, content)
    records: list[Record | Problem] = []
    for number in range(1, len(edges)):
        start = edges[number - 1] + 1
        piece = content[start : edges[number]]
        origin = Origin(shard.path, number, lines[number - 1] if lines else 0)
        try:
            value = loads(piece)
            refuse_doubled(piece)
            records += records_of(value, origin)
        except DoubledKeyError as error:
            records.append(Problem("bad-shape", origin, str(error)))
        except orjson.JSONDecodeError as error:
            said = (
                reason(error, piece, shard.path, of_array=True)
                if piece.strip()
                else "a comma without an element after it"
            )
            message = f"not valid JSON: {said} (in the element from byte {shard.start + start:,} of the file)"
            records.append(Problem("bad-shape", origin, message))
    return Elements(records, len(edges) - 1)
