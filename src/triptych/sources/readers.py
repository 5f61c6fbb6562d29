"""Cut a data file into shards and read them: each element with its file and line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Protocol

from triptych.errors import ConfigError, Origin, Problem
from triptych.sources import tars
from triptych.sources.records import Elements, Kind, Record, Shard, kind_of, shifted
from triptych.sources.table_files import tables
from triptych.sources.text_files import csv_files, json_files

Place = tuple[str, int, int]
"""File, line or element, item"""


class Reader(Protocol):
    """How one kind of file is cut into shards and read; a module with these two functions."""

    def cut(self, path: str) -> Iterator[Shard]:
        """The shards of a file in order, found without building its records."""

    def read(self, shard: Shard) -> Elements:
        """The records of one shard."""


def reader(kind: Kind) -> Reader:
    """The module that reads files of this kind."""
    modules: dict[Kind, Reader] = {
        "json": json_files,
        "csv": csv_files,
        "parquet": tables,
        "arrow": tables,
        "tar": tars,
    }
    return modules[kind]


def cut(path: str) -> Iterator[Shard]:
    """The shards of a data file in order.

    Raises:
        ConfigError: if the file cannot be read at all.
    """
    try:
        yield from reader(kind_of(path)).cut(path)
    except OSError as error:
        raise ConfigError(f"cannot read {path!r}: {error.strerror or error}") from error


def read(shard: Shard) -> Elements:
    """The records of one shard, lines counted from its start.

    Raises:
        ConfigError: if the file cannot be read.
    """
    try:
        return reader(kind_of(shard.path)).read(shard)
    except OSError as error:
        raise ConfigError(f"cannot read {shard.path!r}: {error.strerror or error}") from error


def read_records(path: str) -> Iterator[Record | Problem]:
    """Yield every element of ``path`` in file order; what is not a JSON object becomes a ``bad-shape`` problem.

    Raises:
        ConfigError: if the file cannot be read at all.
    """
    base = 0
    for shard in cut(path):
        elements = read(shard)
        for element in elements.records:
            yield replace(element, origin=shifted(element.origin, base))
        base += elements.count


def read_again(origins: Iterable[Origin]) -> dict[Place, dict[str, Any]]:
    """The records at these places; those that are no objects are left out.

    Raises:
        ConfigError: if a file cannot be read any more.
    """
    wanted = {place(origin) for origin in origins}
    found: dict[Place, dict[str, Any]] = {}
    for path in dict.fromkeys(path for path, *_ in sorted(wanted)):
        for element in read_records(path):
            if isinstance(element, Record) and place(element.origin) in wanted:
                found[place(element.origin)] = element.data
    return found


def place(origin: Origin) -> Place:
    """What names a record, however its file is laid out."""
    return origin.path, origin.line, origin.item
