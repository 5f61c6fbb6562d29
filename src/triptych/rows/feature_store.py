"""Image features on disk: what a frozen tower made of each image, kept once per image and size.

A store is a folder. Every writer has two files of its own in it, which only grow:

    <writer>.features   the features of one image after the other, bfloat16, (levels, tokens, hidden) each
    <writer>.entries    one record per image: its name, where its features start, how many tokens, check sums

A record is written after the features it names, so a kill at any moment leaves at most features without a record, or
part of a record, and neither is ever read. Several processes may write and read at once. What comes back wrong (a file
cut off, a bit flipped) fails its check sum and counts as absent.
"""

from __future__ import annotations

import hashlib
import os
import struct
import uuid
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.images import identity
from triptych.images.geometry import SizedImage
from triptych.sources import storage
from triptych.sources.storage import Stamp

DATA, RECORDS = ".features", ".entries"
NAME_BYTES = 16
BYTES_PER_VALUE = 2

_RECORD = struct.Struct(f"<{NAME_BYTES}sQIII")  # name, offset, tokens, check sum of the features, of the record
_SUM = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class FeatureShape:
    """The features of one token."""

    levels: int
    """1, and one more per DeepStack level."""
    hidden: int
    """Width of the language model."""

    def size(self, tokens: int) -> int:
        """Bytes on disk of the features of ``tokens`` tokens."""
        return self.levels * tokens * self.hidden * BYTES_PER_VALUE


@dataclass(frozen=True, slots=True)
class Place:
    """Where the features of an image are."""

    writer: str
    offset: int
    tokens: int
    checksum: int


def entry_name(location: str, stamp: Stamp, resized: tuple[int, int], decode: str = "exact") -> bytes:
    """Name of an image at one size: another file, version, size or way of decoding has another one."""
    described = f"{identity.key(location)}\0{stamp[0]}\0{stamp[1]}\0{resized[0]}\0{resized[1]}"
    described += "" if decode == "exact" else f"\0{decode}"
    return hashlib.blake2b(described.encode("utf-8", "surrogatepass"), digest_size=NAME_BYTES).digest()


def entry_names(
    images: Iterable[SizedImage], containers: dict[str, Stamp | None], decode: str = "exact"
) -> list[bytes | None]:
    """The name of each image as it is on disk now; None for a file that is gone.

    ``containers`` collects the stamps of files that hold many images, so that each is asked once.
    """
    names: list[bytes | None] = []
    for image in images:
        stamp = identity.stamp(image.location, containers, storage.recent_stamp)
        size = image.resized_height, image.resized_width
        names.append(None if stamp is None else entry_name(image.location, stamp, size, decode))
    return names


class FeatureReader:
    """Finds and reads entries; each process opens the files itself."""

    def __init__(self, folder: Path, shape: FeatureShape) -> None:
        """
        Args:
            folder: of the store; it may not exist yet.
            shape: of the features in it.
        """
        self.folder = folder
        self.shape = shape
        self._places: dict[bytes, list[Place]] = {}
        self._seen: dict[str, int] = {}
        self._files: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "shape": self.shape}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __del__(self) -> None:
        for file in self._files.values():
            os.close(file)

    def refresh(self) -> None:
        """Take in the entries that writers have added since."""
        try:
            found = sorted(entry.name for entry in os.scandir(self.folder) if entry.name.endswith(RECORDS))
        except FileNotFoundError:
            return
        for name in found:
            start = self._seen.get(name, 0)
            try:
                with open(self.folder / name, "rb") as file:
                    file.seek(start)
                    content = file.read()
            except FileNotFoundError:  # someone empties the store
                continue
            whole = len(content) - len(content) % _RECORD.size
            self._seen[name] = start + whole
            self._take(name.removesuffix(RECORDS), content[:whole])

    def _take(self, writer: str, records: bytes) -> None:
        for start in range(0, len(records), _RECORD.size):
            record = records[start : start + _RECORD.size]
            name, offset, tokens, checksum, own = _RECORD.unpack(record)
            if zlib.crc32(record[: -_SUM.size]) == own:
                self._places.setdefault(name, []).append(Place(writer, offset, tokens, checksum))

    def __contains__(self, name: bytes) -> bool:
        return name in self._places

    def read(self, name: bytes, target: NDArray[np.uint16]) -> bool:
        """Copy an entry into ``target``; False if it is absent or damaged, and then ``target`` is undefined.

        Args:
            name: of the entry.
            target: (levels, tokens, hidden), each level contiguous; bfloat16 as its bits.
        """
        for place in tuple(self._places.get(name, ())):
            if place.tokens == target.shape[1] and self._copy(place, target):
                return True
            self._drop(name, place)
        return False

    def _copy(self, place: Place, target: NDArray[np.uint16]) -> bool:
        levels = [memoryview(level).cast("B") for level in target]
        try:
            if place.writer not in self._files:
                self._files[place.writer] = os.open(self.folder / f"{place.writer}{DATA}", os.O_RDONLY)
            # Into place at once; unlike a mapping, a file that was cut off is no crash.
            read = os.preadv(self._files[place.writer], levels, place.offset)
        except OSError:
            return False
        checksum = 0
        for level in levels:
            checksum = zlib.crc32(level, checksum)
        return read == target.nbytes and checksum == place.checksum

    def _drop(self, name: bytes, place: Place) -> None:
        """Forget what cannot be read: it is made again, under the same name."""
        rest = [other for other in self._places[name] if other != place]
        if rest:
            self._places[name] = rest
        else:
            del self._places[name]


class FeatureFile:
    """Adds entries to a store, in files of its own."""

    def __init__(self, folder: Path) -> None:
        """``folder`` and the files are made with the first entry."""
        self.folder = folder
        self.written = 0
        """Bytes of features."""
        self._names: set[bytes] = set()
        self._files: tuple[int, int] | None = None

    def add(self, name: bytes, values: NDArray[np.uint16]) -> bool:
        """Store an entry; False if this writer stored it before.

        Args:
            name: see ``entry_name``.
            values: (levels, tokens, hidden) bfloat16 as its bits, contiguous.

        Raises:
            OSError: if it cannot be written; the store stays valid.
        """
        if name in self._names:
            return False
        data, records = self._open()
        content = values.data.cast("B")
        try:
            offset = os.fstat(data).st_size
            _write_all(data, content)
            record = _RECORD.pack(name, offset, values.shape[1], zlib.crc32(content), 0)[: -_SUM.size]
            _write_all(records, memoryview(record + _SUM.pack(zlib.crc32(record))))
        except OSError:
            self.close()  # part of a record may be written: the next entry goes to new files
            raise
        self._names.add(name)
        self.written += len(content)
        return True

    def close(self) -> None:
        """Close the files; what was added is there already."""
        for file in self._files or ():
            os.close(file)
        self._files = None

    def _open(self) -> tuple[int, int]:
        if self._files is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            writer = uuid.uuid4().hex
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
            self._files = (
                os.open(self.folder / f"{writer}{DATA}", flags, 0o644),
                os.open(self.folder / f"{writer}{RECORDS}", flags, 0o644),
            )
        return self._files


def _write_all(file: int, content: memoryview) -> None:
    while content:
        content = content[os.write(file, content) :]
