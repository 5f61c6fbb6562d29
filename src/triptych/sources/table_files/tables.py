"""Parquet files and saved ``datasets`` folders: text columns are read, image bytes stay where they are until needed.

An image cell is ``{bytes, path}`` (as ``datasets`` writes it), plain binary, or a list of either; it may also be deep
inside, as in messages whose parts hold images. A cell whose bytes are null is the file that its path names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from triptych.errors import Origin, Problem
from triptych.sources import storage
from triptych.sources.records import Elements, Record, Shard, kind_of
from triptych.sources.table_files import columns, opening


def cut(path: str) -> Iterator[Shard]:
    """A shard for each row group of Parquet, or record batch of Arrow.

    Raises:
        OSError: if the file cannot be read.
        ConfigError: if it is not what its name says.
    """
    if kind_of(path) == "parquet":
        metadata = opening.parquet(path).metadata
        weights = [opening.stored_bytes(metadata.row_group(group)) for group in range(metadata.num_row_groups)]
    else:
        weights = [batch.nbytes for batch in opening.batches(path, storage.stamp(path))]
    for group, weight in enumerate(weights):
        yield Shard(path, group, group + 1, "groups", weight=weight)


def read(shard: Shard) -> Elements:
    """The rows of one group; every image with bytes becomes a reference into the file.

    Raises:
        OSError: if the file cannot be read.
    """
    path, group = shard.path, shard.start
    rows = 0
    try:
        if kind_of(path) == "parquet":
            file = opening.parquet(path)
            rows = file.metadata.row_group(group).num_rows
            _check_names(file.schema_arrow.names)
            table, present = opening.parquet_text(file, group)
        else:
            table, present = opening.arrow_group(path, group), set()
            _check_names(table.column_names)
        names = table.column_names
        cells = [columns.values(table.column(name).combine_chunks(), path, group, name, present) for name in names]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        if isinstance(error, OSError) and (error.errno is not None or storage.is_remote(path)):
            raise  # the disk or the network; damaged content has no number
        message = f"row group {group} of the file cannot be read, its rows are lost: {error}"
        return Elements([Problem("bad-shape", Origin(path, 0), message)], rows)
    records: list[Record | Problem] = [
        Record(dict(zip(names, row, strict=True)), Origin(path, number))
        for number, row in enumerate(zip(*cells, strict=True), 1)
    ]
    return Elements(records, table.num_rows)


def _check_names(names: Sequence[str]) -> None:
    """
    Raises:
        ArrowInvalid: if two columns have one name.
    """
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise pa.ArrowInvalid(f"the column `{doubled[0]}` is there twice; drop or rename one of the two")


def cell(path: str, group: int, row: int, column: str, place: int | list[Any]) -> bytes:
    """Image bytes of one cell.

    Args:
        path: the file.
        group: its row group or record batch.
        row: number of the row in the group.
        column: name of the column.
        place: number inside a list, -1 where the cell is the image; for one deeper inside, the names of the fields
            that lead there and its number among all of the group.

    Raises:
        OSError: if they are not there any more.
    """
    try:
        if kind_of(path) == "parquet":
            chunk = opening.parquet_images(path, storage.recent_stamp(path), group, column)
        else:
            chunk = opening.arrow_group(path, group).column(column).combine_chunks()
        if isinstance(place, list):
            value = columns.leaves(chunk, place[:-1])[place[-1]]
        else:
            value = chunk[row]
            if place >= 0:
                value = value.values[place]
        found = value["bytes"] if pa.types.is_struct(value.type) else value
        content = found.as_py()
    except (pa.ArrowInvalid, IndexError, KeyError, TypeError) as error:
        raise OSError(f"the file changed: {error}") from error
    if not isinstance(content, bytes):
        raise OSError("the file changed: no image bytes in this cell")
    return content
