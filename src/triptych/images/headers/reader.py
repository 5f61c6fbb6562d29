"""Bytes of a file by their position, doubt about them, and the orientation in EXIF and XMP data."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from functools import partial
from typing import IO

_BLOCK = 4096
"""Bytes of the first read, which holds the whole header of most files."""
_LONGEST = 1 << 17
"""Bytes of metadata that are read at once; longer ones are left to Pillow."""
_ORIENTATION = 0x0112
_TAG_KINDS = {_ORIENTATION: (3, 1), 0x011A: (5, 1), 0x0128: (3, 1)}
"""Tag -> (type, count) of those that Pillow uses as it opens a file: orientation, resolution and its unit."""
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
XMP_ORIENTATION = b"tiff:Orientation"


class DoubtError(Exception):
    """The file is not one that can be judged here."""


def sure(condition: bool) -> None:
    if not condition:
        raise DoubtError


class Reader:
    """Bytes of a file by their position."""

    __slots__ = ("_block", "_start", "fetch", "size")

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.size = size
        self.fetch = _reading(file)
        """(count, position) -> bytes, fewer of them at the end of the file."""
        self._block, self._start = self.fetch(_BLOCK, 0), 0

    def at(self, position: int, count: int) -> bytes:
        """``count`` bytes, from the block read last if they are in it."""
        offset = position - self._start
        if offset < 0 or offset + count > len(self._block):
            sure(position + count <= self.size)
            self._block, self._start, offset = self.fetch(max(count, _BLOCK), position), position, 0
            sure(len(self._block) >= count)
        return self._block[offset : offset + count]

    def metadata(self, begin: int, end: int) -> bytes:
        """All from ``begin`` to ``end``, if that is not long."""
        sure(end - begin <= _LONGEST)
        return self.at(begin, end - begin)


def _reading(file: IO[bytes]) -> Callable[[int, int], bytes]:
    """(count, position) -> bytes of ``file``, fewer of them at its end."""
    if isinstance(file, io.BufferedReader) and isinstance(file.raw, io.FileIO) and hasattr(os, "pread"):
        return partial(os.pread, file.fileno())  # a PNG has a small read for every 8 KiB: a buffer would cost more

    def read(count: int, position: int) -> bytes:
        file.seek(position)
        return file.read(count)

    return read


def orientation(read: Reader, exif: tuple[int, int] | None, xmp: tuple[int, int] | None) -> int:
    """Of (begin, end) of the EXIF and XMP data; 1 if they say nothing."""
    orientation = None if exif is None else _exif_orientation(read, *exif)
    if orientation is None and xmp is not None:
        sure(XMP_ORIENTATION not in read.metadata(*xmp))
    return orientation or 1


def _exif_orientation(read: Reader, begin: int, end: int) -> int | None:
    """Of well-formed EXIF data; None if there is none in its first directory."""
    sure(end - begin >= 14)
    if read.at(begin, 6) == b"Exif\0\0":
        begin += 6
    head, length = read.at(begin, 8), end - begin
    sure(head.startswith((b"II*\0", b"MM\0*")))
    order = "<" if head.startswith(b"I") else ">"
    (directory,) = struct.unpack(order + "L", head[4:])
    sure(directory + 2 <= length)
    (count,) = struct.unpack(order + "H", read.at(begin + directory, 2))
    sure(directory + 2 + 12 * count <= length)

    orientation, outside = None, 0
    entries = read.at(begin + directory + 2, 12 * count)
    for tag, kind, number, value in struct.iter_unpack(order + "HHL4s", entries):
        taken = _TYPE_BYTES.get(kind, 0) * number
        sure(taken > 0)
        if taken > 4:
            (where,) = struct.unpack(order + "L", value)
            outside += taken
            sure(where + taken <= length and outside <= length)
        if tag in _TAG_KINDS:
            sure(_TAG_KINDS[tag] == (kind, number))
        if tag == _ORIENTATION:
            sure(orientation is None)
            (orientation,) = struct.unpack(order + "H", value[:2])
    return orientation
