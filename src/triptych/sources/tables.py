"""Parquet files and saved ``datasets`` folders: text columns are read, image bytes stay where they are until needed.

An image cell is ``{bytes, path}`` (as ``datasets`` writes it), plain binary, or a list of either; it may also be deep
inside, as in messages whose parts hold images. A cell whose bytes are null is the file that its path names.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

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
            columns[name] = _values(column, path, group, name, present)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        if isinstance(error, OSError) and (error.errno is not None or storage.is_remote(path)):
            raise  # the disk or the network; damaged content has no number
        message = f"row group {group} of the file cannot be read, its rows are lost: {error}"
        count = _parquet(path).metadata.row_group(group).num_rows if is_parquet else 0
        return Elements([Problem("bad-shape", Origin(path, 0), message)], count)
    rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    records: list[Record | Problem] = [Record(row, Origin(path, number)) for number, row in enumerate(rows, 1)]
    return Elements(records, table.num_rows)


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
            chunk = _parquet_images(path, storage.recent_stamp(path), group, column)
        else:
            chunk = _arrow_group(path, group).column(column).combine_chunks()
        if isinstance(place, list):
            value = _leaves(chunk, place[:-1])[place[-1]]
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


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
        or types.is_list_view(kind)
        or types.is_large_list_view(kind)
    )


def _is_image_cell(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type)
    return _is_bytes(kind)


def _is_image(kind: pa.DataType) -> bool:
    """Whether a column holds an image in each row, or a plain list of them."""
    return _is_image_cell(kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind)


def _holds_images(kind: pa.DataType) -> bool:
    """Whether there are images in a column, however deep."""
    if isinstance(kind, pa.BaseExtensionType):
        return _holds_images(kind.storage_type)
    if _is_list(kind):
        return _holds_images(kind.value_type)
    if pa.types.is_struct(kind):
        return _is_image_cell(kind) or any(_holds_images(kind.field(place).type) for place in range(kind.num_fields))
    return _is_bytes(kind)


def _values(column: pa.Array, path: str, group: int, name: str, present: set[str]) -> list[Any]:
    """The cells of a column, images as references."""
    if name in present or _is_image(column.type):
        return _references(column, path, group, name, present)
    if _holds_images(column.type):
        return _Nested(path, group, name).values(column, np.arange(len(column)), [])
    values: list[Any] = column.to_pylist()
    return values


class _Nested:
    """Images inside lists and structs of a column: each is found again by its number among those of the group."""

    def __init__(self, path: str, group: int, column: str) -> None:
        self._path, self._group, self._column = path, group, column

    def values(self, array: pa.Array, rows: NDArray[np.int64], fields: list[str]) -> list[Any]:
        """
        Args:
            array: (K,) what is at one depth of the column.
            rows: (K,) row of each element.
            fields: names that lead to it.
        """
        if isinstance(array.type, pa.BaseExtensionType):
            array = array.storage
        if _is_image_cell(array.type):
            return self._images(array, rows, fields)
        if _is_list(array.type):
            lengths = _lengths(array)
            inner = self.values(array.flatten(), np.repeat(rows, lengths), fields)
            ends = np.cumsum(lengths).tolist()
            cut = zip([0, *ends[:-1]], ends, pc.is_valid(array).to_pylist(), strict=True) if len(ends) else ()
            return [inner[start:end] if valid else None for start, end, valid in cut]
        if pa.types.is_struct(array.type):
            names = [field.name for field in array.type]
            children = [self.values(array.field(place), rows, [*fields, name]) for place, name in enumerate(names)]
            cells = zip(*children, strict=True)
            valid = pc.is_valid(array).to_pylist()
            return [dict(zip(names, cell, strict=True)) if ok else None for ok, cell in zip(valid, cells, strict=True)]
        values: list[Any] = array.to_pylist()
        return values

    def _images(self, array: pa.Array, rows: NDArray[np.int64], fields: list[str]) -> list[ImageRef | None]:
        valid = pc.is_valid(array).to_pylist()
        files = [None] * len(array)
        if pa.types.is_struct(array.type):
            has_bytes = pc.is_valid(array.field("bytes")).to_pylist()
            valid = [one and other for one, other in zip(valid, has_bytes, strict=True)]
            files = array.field("path").to_pylist() if array.type.get_field_index("path") >= 0 else files
        found: list[ImageRef | None] = []
        for number, (file, row, ok) in enumerate(zip(files, rows.tolist(), valid, strict=True)):
            if ok:
                location = members.name("table", self._path, self._group, row, self._column, [*fields, number])
                found.append(ImageRef(file or f"{'.'.join([self._column, *fields])}[{number}]", location))
            else:
                found.append(ImageRef(file) if file else None)
        return found


def _lengths(array: pa.Array) -> NDArray[np.int64]:
    """(K,) items of each list, 0 for null."""
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    return np.where(pc.is_valid(array).to_numpy(zero_copy_only=False), lengths, 0).astype(np.int64)


def _leaves(array: pa.Array, fields: list[str]) -> pa.Array:
    """All elements at the end of ``fields``, as ``_Nested`` numbers them."""
    for field in [*fields, None]:
        while True:
            if isinstance(array.type, pa.BaseExtensionType):
                array = array.storage
            elif _is_list(array.type):
                array = array.flatten()
            else:
                break
        if field is not None:
            array = array.field(field)
    return array


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
