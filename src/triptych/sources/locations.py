"""Open the bytes that a location inside a container names."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

import orjson

from triptych.sources import members, storage
from triptych.sources.table_files import tables


@contextmanager
def open_member(location: str) -> Iterator[IO[bytes]]:
    """The bytes of a member; of a tar only those that are read are fetched.

    Raises:
        OSError: if it cannot be read.
    """
    kind, path, *place = orjson.loads(location.removeprefix(members.PREFIX))
    if kind == "table":
        yield io.BytesIO(tables.cell(path, *place))
        return
    offset, size, _ = place
    with storage.open_binary(path) as file:
        yield cast(IO[bytes], io.BufferedReader(_Window(file, offset, size)))


class _Window(io.RawIOBase):
    """Part of a file, as a file."""

    def __init__(self, file: Any, offset: int, size: int) -> None:
        super().__init__()
        self._file = file
        self._offset = offset
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self._size - self._at))
        self._file.seek(self._offset + self._at)
        content = self._file.read(wanted)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)
