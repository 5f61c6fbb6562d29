"""Tar shards with WebDataset naming: members that share a name up to its first dot are one sample.

    0001.json  0001.0.jpg  0001.1.jpg      one sample: its record, and its images in the order of their names

A record may name its images (``"images": ["0.jpg", "1.jpg"]`` or full member names); where it names none, the image
members are its images. Members are read by offset; nothing is extracted.
"""

from __future__ import annotations

import os
import posixpath
import re
import tarfile
import unicodedata
import urllib.parse
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from typing import IO, Any, cast

import orjson

from triptych.errors import Origin, Problem
from triptych.sources import members, storage
from triptych.sources.records import Elements, ImageRef, Record, Shard, json_type
from triptych.sources.text_files.other_content import HEAD, what_it_holds

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
RECORD_ENDING = "json"

MAX_HEADER = 1 << 20
"""Bytes of a header, with a long name; a longer one is made to fill the memory."""
MAX_RECORD = 1 << 27
"""Bytes of a record."""

Place = tuple[int, int]
"""(offset, size) of a member's content in bytes."""


def cut(path: str) -> Iterator[Shard]:
    """One shard: the samples of a tar stand in one row.

    Raises:
        OSError: if the file cannot be read.
    """
    found = storage.stamp(path)
    if found is None:
        raise FileNotFoundError(2, os.strerror(2), path)
    yield Shard(path, 0, found[0], "tar", weight=found[0])


def read(shard: Shard) -> Elements:
    """The samples of a tar file.

    Raises:
        OSError: if the file cannot be read.
    """
    with storage.open_binary(shard.path) as file:
        places, defect = _walk(file)
        file.seek(0)
        held = what_it_holds(file.read(HEAD)) if not places else None
        records: list[Record | Problem] = []
        groups = groupby(places, key=lambda item: _split(item[0])[0])
        for number, (key, group) in enumerate(groups, 1):
            records.append(_sample(file, shard.path, key, dict(group), Origin(shard.path, number)))
    count = len(records)
    if defect is not None:
        lost = f"what stands after {places[-1][0] if places else 'its start'!r} is lost"
        said = f"no tar file: it is {held}" if held is not None else f"damaged tar file: {defect}; {lost}"
        records.append(Problem("bad-shape", Origin(shard.path, 0), said))
    return Elements(records, count)


def find(path: str, name: str) -> Place | None:
    """Where a member of a tar file is, None if it has none of this name.

    Raises:
        OSError: if the file cannot be read, or is damaged and the member is not in front of the damage.
    """
    table, defect = _table(path, storage.recent_stamp(path))
    place = table.get(posixpath.normpath(name))
    if place is None and defect is not None:
        raise OSError(f"damaged tar file: {defect}")
    return place


def find_nearly(path: str, name: str) -> str | None:
    """The member whose name differs from ``name`` only in case, escapes, slashes, Unicode form or leading folders."""
    table, _ = _table(path, storage.recent_stamp(path))
    wanted = _plain(name)
    return next((member for member in table if _plain(member) == wanted), None) or next(
        (member for member in table if _plain(member).rpartition("/")[2] == wanted.rpartition("/")[2]), None
    )


def _plain(name: str) -> str:
    text = posixpath.normpath(urllib.parse.unquote(name).replace("\\", "/")).strip()
    return unicodedata.normalize("NFKC", text).casefold()


@lru_cache(maxsize=8)
def _table(path: str, _stamp: storage.Stamp | None) -> tuple[dict[str, Place], str | None]:
    with storage.open_binary(path) as file:
        places, defect = _walk(file)
    return dict(places), defect


def _walk(file: IO[bytes]) -> tuple[list[tuple[str, Place]], str | None]:
    """The members in order, and what is wrong after the last of them."""
    places: list[tuple[str, Place]] = []
    try:
        # A name that is not UTF-8 only has to be shown: members are found by their offset.
        with tarfile.open(fileobj=cast(Any, _Headers(file)), mode="r:", encoding="utf-8", errors="replace") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # else every header stays in memory
                if member.isreg():
                    places.append((posixpath.normpath(member.name), (member.offset_data, member.size)))
            end = archive.offset
    except (tarfile.TarError, ValueError, OverflowError) as error:  # also what is raised for numbers that are none
        return places, str(error)
    # A damaged header ends the walk as quietly as the end of the archive does.
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        return places, f"it ends at byte {end:,} without the mark of its end"
    if block.strip(b"\0"):
        return places, f"no header of a member at byte {end:,}"
    return places, None


class _Headers:
    """A tar file of which only headers are read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int) -> bytes:
        """
        Raises:
            TarError: if more is asked for than a header may have.
        """
        if size > MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)


def _split(name: str) -> tuple[str, str]:
    """(key, ending) of a member: the ending begins at the first dot of the file name."""
    folder, base = posixpath.split(name)
    stem, _, ending = base.partition(".")
    return posixpath.join(folder, stem), ending


def _sample(file: IO[bytes], path: str, key: str, group: dict[str, Place], origin: Origin) -> Record | Problem:
    by_ending = {_split(name)[1]: (name, place) for name, place in group.items()}
    if RECORD_ENDING not in by_ending:
        endings = ", ".join(by_ending) or "none"
        return Problem("bad-shape", origin, f"sample {key!r} has no member {key}.json; its endings are {endings}")
    _, (offset, size) = by_ending[RECORD_ENDING]
    if size > MAX_RECORD:
        return Problem("bad-shape", origin, f"{key}.json is over {MAX_RECORD:,} bytes; it was not read")
    file.seek(offset)
    try:
        data = orjson.loads(file.read(size))
    except orjson.JSONDecodeError as error:
        return Problem("bad-shape", origin, f"{key}.json is not valid JSON: {error.msg}")
    if not isinstance(data, dict):
        return Problem("bad-shape", origin, f"{key}.json: a sample is a JSON object, this is {json_type(data)}")
    images = {
        ending: ImageRef(name, members.name("tar", path, *place, name))
        for ending, (name, place) in by_ending.items()
        if ending.rpartition(".")[2].lower() in IMAGE_ENDINGS
    }
    by_name = {image.source: image for image in images.values()} | images

    def named(item: Any) -> Any:
        return by_name.get(posixpath.normpath(item), item) if isinstance(item, str) else item

    for column in ("images", "image"):
        value = data.get(column)
        if value is not None:
            data[column] = list(map(named, value)) if isinstance(value, list) else named(value)
    if images and data.get("images") is None and data.get("image") is None:
        data["images"] = [images[ending] for ending in sorted(images, key=_natural)]
    return Record(data, origin)


def _natural(ending: str) -> list[tuple[int, str]]:
    """Sort key in which ``2.jpg`` comes before ``10.jpg``."""
    return [(int(digits or 0), text) for digits, text in re.findall(r"(\d*)(\D*)", ending)]
