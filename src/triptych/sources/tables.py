"""Parquet files and saved ``datasets`` folders: text columns are read, image bytes stay where they are until needed.

An image cell is ``{bytes, path}`` (as ``datasets`` writes it), plain binary, or a list of either. A cell whose bytes
are null is the file that its path names.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from triptych.errors import ConfigError, Origin, Problem
from triptych.sources import members, storage
from triptych.sources.records import Elements, ImageRef, Record, Shard, kind_of

OPEN_GROUPS = 2
"""Row groups of Parquet images that a process keeps; rows of a shuffled epoch rarely share one."""


def cut(path: str) -> Iterator[Shard]:
    """A shard for each row group of Parquet, or record batch of Arrow.

    Raises:
        OSError: if the file cannot be read.
        ConfigError: if it is not what its name says.
    """
    if kind_of(path) == "parquet":
        metadata = _parquet(path).metadata
        weights = [_stored_bytes(metadata.row_group(group)) for group in range(metadata.num_row_groups)]
    else:
        weights = [batch.nbytes for batch in _batches(path, storage.stamp(path))]
    for group, weight in enumerate(weights):
        yield Shard(path, group, group + 1, "groups", weight=weight)


def read(shard: Shard) -> Elements:
    """The rows of one group; every image with bytes becomes a reference into the file.

    Raises:
        OSError: if the file cannot be read.
    """
    path, group = shard.path, shard.start
    is_parquet = kind_of(path) == "parquet"
    try:
        table, present = _parquet_text(path, group) if is_parquet else (_arrow_group(path, group), set())
        columns: dict[str, list[Any]] = {}
        for name in table.column_names:
            column = table.column(name).combine_chunks()
            holds_images = name in present or _is_image(column.type)
            columns[name] = _references(column, path, group, name, present) if holds_images else column.to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        if isinstance(error, OSError) and (error.errno is not None or storage.is_remote(path)):
            raise  # the disk or the network; damaged content has no number
        message = f"row group {group} of the file cannot be read, its rows are lost: {error}"
        count = _parquet(path).metadata.row_group(group).num_rows if is_parquet else 0
        return Elements([Problem("bad-shape", Origin(path, 0), message)], count)
    rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    records: list[Record | Problem] = [Record(row, Origin(path, number)) for number, row in enumerate(rows, 1)]
    return Elements(records, table.num_rows)


def cell(path: str, group: int, row: int, column: str, place: int) -> bytes:
    """Image bytes of one cell; ``place`` counts inside a list, -1 where the cell is the image.

    Raises:
        OSError: if they are not there any more.
    """
    try:
        if kind_of(path) == "parquet":
            chunk = _parquet_images(path, storage.recent_stamp(path), group, column)
        else:
            chunk = _arrow_group(path, group).column(column).combine_chunks()
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


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_image(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _references(
    column: pa.Array, path: str, group: int, name: str, present: set[str]
) -> list[ImageRef | list[ImageRef | None] | None]:
    """The images of each row. ``present`` names the columns of which all bytes are known to be there without a look."""

    def reference(row: int, place: int, file: str | None, has_bytes: bool) -> ImageRef | None:
        if has_bytes:
            location = members.name("table", path, group, row, name, place)
            return ImageRef(file or f"{name}[{max(place, 0)}]", location)
        return ImageRef(file) if file else None

    nested = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    cells = column.flatten() if nested else column
    if pa.types.is_struct(cells.type):
        files = cells.field("path").to_pylist() if cells.type.get_field_index("path") >= 0 else [None] * len(cells)
        # Where a struct is null its fields hold anything, also bytes.
        valid = [True] * len(cells) if name in present else pc.is_valid(cells.field("bytes")).to_pylist()
        has_bytes = [found and whole for found, whole in zip(valid, pc.is_valid(cells).to_pylist(), strict=True)]
    else:
        files = [None] * len(cells)
        has_bytes = pc.is_valid(cells).to_pylist()
    if not nested:
        return [reference(row, -1, *found) for row, found in enumerate(zip(files, has_bytes, strict=True))]
    result: list[ImageRef | list[ImageRef | None] | None] = []
    position = 0
    for row, length in enumerate(pc.list_value_length(column).to_pylist()):
        if length is None:
            result.append(None)
            continue
        found = zip(files[position : position + length], has_bytes[position : position + length], strict=True)
        result.append([reference(row, place, *item) for place, item in enumerate(found)])
        position += length
    return result


def _parquet(path: str) -> Any:
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(storage.open_binary(path) if storage.is_remote(path) else path)
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{path!r} is not a Parquet file, or damaged: {error}") from error


def _stored_bytes(group: Any) -> int:
    return sum(group.column(number).total_compressed_size for number in range(group.num_columns))


def _parquet_text(path: str, group: int) -> tuple[pa.Table, set[str]]:
    """A row group without the bytes of its images, where the file's statistics say that no image lacks them."""
    file = _parquet(path)
    metadata = file.metadata.row_group(group)
    chunks = {chunk.path_in_schema: chunk for chunk in map(metadata.column, range(metadata.num_columns))}
    skipped: dict[str, tuple[str, int]] = {}  # column -> (leaf of its bytes, nulls in it)
    for field in file.schema_arrow:
        own = [leaf for leaf in chunks if leaf.split(".")[0] == field.name] if _is_image(field.type) else []
        bytes_leaf = next((leaf for leaf in own if leaf.endswith(".bytes")), None)
        if bytes_leaf is None or len(own) == 1:
            continue
        statistics = chunks[bytes_leaf].statistics
        if statistics is not None and statistics.has_null_count:
            skipped[field.name] = bytes_leaf, statistics.null_count
    left_out = {leaf for leaf, _ in skipped.values()}
    table = file.read_row_group(group, columns=[leaf for leaf in chunks if leaf not in left_out])
    present = {name for name, (_, nulls) in skipped.items() if nulls == _rows_without_element(table.column(name))}
    for name in skipped.keys() - present:
        column = file.read_row_group(group, columns=[name]).column(name)
        table = table.set_column(table.column_names.index(name), name, column)
    return table, present


def _rows_without_element(column: pa.ChunkedArray) -> int:
    """Rows whose list is empty or null: Parquet counts a null for each of them."""
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return 0
    with_some = pc.sum(pc.greater(pc.list_value_length(column), 0)).as_py()
    return len(column) - (with_some or 0)


@lru_cache(maxsize=OPEN_GROUPS)
def _parquet_images(path: str, _stamp: storage.Stamp | None, group: int, column: str) -> pa.Array:
    return _parquet(path).read_row_group(group, columns=[column]).column(column).combine_chunks()


@lru_cache(maxsize=64)
def _batches(path: str, _stamp: storage.Stamp | None) -> list[pa.RecordBatch]:
    """Record batches of an Arrow file, memory-mapped: nothing is read before it is asked for."""
    source = pa.memory_map(path) if not storage.is_remote(path) else storage.open_binary(path)
    try:
        try:
            return list(pa.ipc.open_stream(source))
        except pa.ArrowInvalid:
            source.seek(0)
            file = pa.ipc.open_file(source)
            return [file.get_batch(number) for number in range(file.num_record_batches)]
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{path!r} is not an Arrow file, or damaged: {error}") from error


def _arrow_group(path: str, group: int) -> pa.Table:
    return pa.Table.from_batches([_batches(path, storage.recent_stamp(path))[group]])
