"""Tables of text, with commas, semicolons or tabs: the first row names the columns, a cell is text or JSON.

A cell that holds a JSON object, or a list of objects or strings, is that (``["a.png", "b.png"]``, a list of turns);
an empty cell is null; everything else is text. Rows are numbered by the line in which they begin.
"""

from __future__ import annotations

import ast
import csv
import io
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from triptych.errors import Origin, Problem
from triptych.sources import storage
from triptych.sources.records import Elements, Record, Shard, split_compression
from triptych.sources.text_files.other_content import what_it_holds
from triptych.sources.text_files.text import BOM, MAX_RECORD, Text, not_utf8, sniff

SHARD_BYTES = 1 << 18
HEAD_BYTES = 1 << 20
"""Bytes in which the header ends."""
_LONGEST_CELL = 1 << 30
_DELIMITERS = ",;\t|"


def cut(path: str) -> Iterator[Shard]:
    """Pieces of whole rows, each with the header in front; only the first of them counts it among its lines.

    Raises:
        OSError: if the file cannot be read.
    """
    with Text(path) as text:
        encoding = sniff(text.read(4))
    with Text(path, encoding) as text:
        buffer = text.read(HEAD_BYTES).removeprefix(BOM)
        ends = _row_ends(buffer)
        header = buffer[: int(ends[0])] if len(ends) else buffer
        if (refused := _refused(buffer, header, path)) is not None:
            yield Shard(path, 0, 0, "rows", b"", refused, (storage.stamp(path) or (0, 0))[0])
            return
        buffer, start = buffer[len(header) :], 0
        while True:
            more = text.read(max(SHARD_BYTES, len(buffer)))
            buffer += more
            ends = _row_ends(buffer)
            length = len(buffer) if not more else int(ends[-1]) if len(ends) else 0
            if length or not more:
                content = header + buffer[:length]
                yield Shard(path, start, start + length, "rows", content, text.defect, text.progress())
                start += len(content) if not start else length
                buffer = buffer[length:]
            if len(buffer) >= MAX_RECORD:
                defect = f"a row is over {MAX_RECORD:,} bytes: a quote is not closed; it and what follows was not read"
                yield Shard(path, start, start, "rows", b"", defect)
                return
            if not more:
                return


def read(shard: Shard) -> Elements:
    """The rows of one shard."""
    assert shard.content is not None
    records: list[Record | Problem] = []
    count = 0
    try:
        count = _read_rows(shard, shard.content.decode(), records)
    except UnicodeDecodeError:
        records.append(Problem("bad-shape", Origin(shard.path, 0), not_utf8(shard.content, shard.path)))
    except csv.Error as error:
        records.append(Problem("bad-shape", Origin(shard.path, 0), f"not a table of text: {error}"))
    if shard.defect is not None:
        records.append(Problem("bad-shape", Origin(shard.path, 0), shard.defect))
    return Elements(records, count)


def _read_rows(shard: Shard, text: str, records: list[Record | Problem]) -> int:
    """Add the rows to ``records``; returns how many lines they take, of the first shard with its header."""
    csv.field_size_limit(_LONGEST_CELL)  # images as base64 are longer than the library expects
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(shard.path, text))
    header = [name.strip() for name in next(rows, [])]
    above = 0 if shard.start == 0 else rows.line_num
    begin = rows.line_num + 1
    for row in rows:
        if row:
            records.append(_record(row, header, Origin(shard.path, begin - above)))
        begin = rows.line_num + 1
    return rows.line_num - above


def _record(row: list[str], header: list[str], origin: Origin) -> Record | Problem:
    if len(row) != len(header):
        message = f"{len(row)} cells, but the header names {len(header)}; a cell that holds the separator needs quotes"
        return Problem("bad-shape", origin, message)
    return Record({name: _value(cell) for name, cell in zip(header, row, strict=True) if name}, origin)


def _value(cell: str) -> Any:
    """An object, or a list of objects or strings, in JSON or as Python prints it; else text, null if there is none."""
    text = cell.strip()
    if not text.startswith(("[", "{")):
        return cell if text else None
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        try:
            value = ast.literal_eval(text)
            orjson.dumps(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return cell
    if isinstance(value, dict) or value == []:
        return value
    holds = isinstance(value, list) and all(isinstance(item, dict) for item in value)
    return value if holds or (isinstance(value, list) and all(isinstance(item, str) for item in value)) else cell


def _refused(begin: bytes, header: bytes, path: str) -> str | None:
    """What is wrong with a file that begins so, or with its header; None if nothing is."""
    if (held := what_it_holds(begin)) is not None:
        return f"the file holds no table of text: it is {held}"
    try:
        text = header.decode()
    except UnicodeDecodeError:
        return not_utf8(header, path)
    try:
        names = [name.strip() for name in next(csv.reader(io.StringIO(text), delimiter=_delimiter(path, text)), [])]
    except csv.Error as error:
        return f"not a table of text: {error}"
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        return f"the header names `{twice[0]}` twice; give each column a name of its own"
    return None if any(names) else "the first row is to name the columns, and it is empty"


def _delimiter(path: str, text: str) -> str:
    """A tab in .tsv, else what the header holds most of."""
    if split_compression(path)[0].lower().endswith(".tsv"):
        return "\t"
    header = text.partition("\n")[0]
    return max(_DELIMITERS, key=header.count)


def _row_ends(text: bytes) -> NDArray[np.intp]:
    """Where the rows of a text that begins with one end: after line ends that are not inside quotes."""
    data = np.frombuffer(text, np.uint8)
    inside = np.cumsum(data == 0x22, dtype=np.uint8) & 1  # the sum wraps, its last bit is right
    return np.flatnonzero((data == 0x0A) & (inside == 0)) + 1
