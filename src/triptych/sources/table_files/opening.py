"""Open Parquet files and Arrow files of ``datasets``, one row group or record batch at a time."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from triptych.errors import ConfigError
from triptych.sources import storage
from triptych.sources.table_files.types import is_image
from triptych.sources.text_files.other_content import HEAD, what_it_holds

OPEN_GROUPS = 2
"""Row groups of Parquet images that a process keeps; rows of a shuffled epoch rarely share one."""


def parquet(path: str) -> Any:
    """A Parquet file.

    Raises:
        ConfigError: if it is none.
    """
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(storage.open_binary(path) if storage.is_remote(path) else path)
    except pa.ArrowInvalid as error:
        raise _none(path, "a Parquet", error, (b"PAR1",)) from error


def _none(path: str, kind: str, error: pa.ArrowInvalid, starts: tuple[bytes, ...]) -> ConfigError:
    """That a file is no table, and why: what the library says, or what its first bytes show if it begins otherwise."""
    with storage.open_binary(path) as file:
        head = file.read(HEAD)
    held = None if head.startswith(starts) else what_it_holds(head)
    return ConfigError(f"{path!r} is not {kind} file, or damaged: {f'it is {held}' if held is not None else error}")


def stored_bytes(group: Any) -> int:
    """Bytes that a row group takes in its file."""
    return sum(group.column(number).total_compressed_size for number in range(group.num_columns))


def parquet_text(file: Any, group: int) -> tuple[pa.Table, set[str]]:
    """A row group without the bytes of its images, where the file's statistics say that no image lacks them."""
    metadata = file.metadata.row_group(group)
    chunks = {chunk.path_in_schema: chunk for chunk in map(metadata.column, range(metadata.num_columns))}
    skipped: dict[str, tuple[str, int]] = {}  # column -> (leaf of its bytes, nulls in it)
    for field in file.schema_arrow:
        own = [leaf for leaf in chunks if leaf.split(".")[0] == field.name] if is_image(field.type) else []
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
def parquet_images(path: str, _stamp: storage.Stamp | None, group: int, column: str) -> pa.Array:
    """One column of a row group, images and all."""
    return parquet(path).read_row_group(group, columns=[column]).column(column).combine_chunks()


@lru_cache(maxsize=64)
def batches(path: str, _stamp: storage.Stamp | None) -> list[pa.RecordBatch]:
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
        raise _none(path, "an Arrow", error, (b"ARROW1", b"\xff\xff\xff\xff")) from error


def arrow_group(path: str, group: int) -> pa.Table:
    """One record batch of an Arrow file."""
    return pa.Table.from_batches([batches(path, storage.recent_stamp(path))[group]])
