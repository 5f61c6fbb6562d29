"""Cut a data file into shards and read them: each element with its file and line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

from triptych.errors import ConfigError, Problem
from triptych.sources import tars
from triptych.sources.records import Elements, Kind, Record, Shard, kind_of, shifted
from triptych.sources.table_files import tables
from triptych.sources.text_files import csv_files, json_files


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
