"""The cells of a column as JSON would hold them; every image with bytes becomes a reference into the file.

A cell that JSON has no form for (a date), or that cannot be read (text that is not UTF-8), becomes a ``Foreign``: where
nobody needs it, it does no harm, and who needs it says what it is.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from triptych.sources import members
from triptych.sources.records import Foreign, ImageRef
from triptych.sources.table_files import types

MANY_NUMBERS = 256
"""Numbers in a cell, on average, from which on a column of them is left as it is: an embedding, or pixels."""
_PIXELS_DEEP = 3
"""Lists in lists from which on numbers may be pixels."""
_UUID = "arrow.uuid"


def values(column: pa.Array, path: str, group: int, name: str, present: set[str]) -> list[Any]:
    """The cells of a column.

    Args:
        column: of one row group.
        path: its file.
        group: number of the row group or record batch.
        name: of the column.
        present: columns of images of which all bytes are known to be there without a look.
    """
    if name in present or types.is_image(column.type):
        return _references(column, path, group, name, present)
    if types.is_plain(column.type):
        try:
            plain: list[Any] = column.to_pylist()
        except UnicodeDecodeError:
            pass
        else:
            return plain
    return _Nested(path, group, name).values(column, np.arange(len(column)), [])


def leaves(array: pa.Array, fields: list[str]) -> pa.Array:
    """All elements at the end of ``fields``, as images inside lists and structs are numbered."""
    for field in [*fields, None]:
        array = _opened(array)
        while types.is_list(array.type):
            array = _opened(array.flatten())
        if field is not None:
            array = array.field(field)
    return array


def _opened(array: pa.Array) -> pa.Array:
    """An array without an encoding around it, a map as a list of its entries."""
    while True:
        if isinstance(array.type, pa.BaseExtensionType) and array.type.extension_name != _UUID:
            array = array.storage
        elif pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        elif pa.types.is_run_end_encoded(array.type):
            array = pc.run_end_decode(array)
        elif pa.types.is_map(array.type):
            array = array.cast(types.entries(array.type))
        else:
            return array


class _Nested:
    """Cells of any type; images in them are found again by their number among those of the group."""

    def __init__(self, path: str, group: int, column: str) -> None:
        self._path, self._group, self._column = path, group, column

    def values(self, array: pa.Array, rows: NDArray[np.int64], fields: list[str]) -> list[Any]:
        """
        Args:
            array: (K,) what is at one depth of the column.
            rows: (K,) row of each element.
            fields: names that lead to it.
        """
        if pa.types.is_map(array.type):
            found = self.values(_opened(array), rows, fields)
            return [None if cell is None else {item["key"]: item["value"] for item in cell} for cell in found]
        array = _opened(array)
        kind = array.type
        if types.is_image_cell(kind):
            return self._images(array, rows, fields)
        if types.is_list(kind):
            return self._lists(array, rows, fields)
        if pa.types.is_struct(kind):
            return self._structs(array, rows, fields)
        return _leaf(array)

    def _lists(self, array: pa.Array, rows: NDArray[np.int64], fields: list[str]) -> list[Any]:
        lengths = _lengths(array)
        if types.is_numbers(array.type) and _number_count(array) > MANY_NUMBERS * max(1, len(array)):
            return _foreign(array, "a list of numbers", pixels=_depth(array.type) >= _PIXELS_DEEP)
        inner = self.values(array.flatten(), np.repeat(rows, lengths), fields)
        ends = np.cumsum(lengths).tolist()
        cut = zip([0, *ends[:-1]], ends, pc.is_valid(array).to_pylist(), strict=True) if len(ends) else ()
        return [inner[start:end] if valid else None for start, end, valid in cut]

    def _structs(self, array: pa.Array, rows: NDArray[np.int64], fields: list[str]) -> list[Any]:
        names = [field.name for field in array.type]
        doubled = [name for name, count in Counter(names).items() if count > 1]
        if doubled:
            return _foreign(array, f"an object with the key `{doubled[0]}` twice")
        if not names:
            return [{} if valid else None for valid in pc.is_valid(array).to_pylist()]
        children = [self.values(array.field(place), rows, [*fields, name]) for place, name in enumerate(names)]
        cells = zip(*children, strict=True)
        valid = pc.is_valid(array).to_pylist()
        return [dict(zip(names, cell, strict=True)) if ok else None for ok, cell in zip(valid, cells, strict=True)]

    def _images(self, array: pa.Array, rows: NDArray[np.int64], fields: list[str]) -> list[ImageRef | None]:
        valid = pc.is_valid(array).to_pylist()
        files = [None] * len(array)
        if pa.types.is_struct(array.type):
            has_bytes = pc.is_valid(array.field("bytes")).to_pylist()
            valid = [one and other for one, other in zip(valid, has_bytes, strict=True)]
            files = _files(array)
        found: list[ImageRef | None] = []
        for number, (file, row, ok) in enumerate(zip(files, rows.tolist(), valid, strict=True)):
            if ok:
                location = members.name("table", self._path, self._group, row, self._column, [*fields, number])
                found.append(ImageRef(file or f"{'.'.join([self._column, *fields])}[{number}]", location))
            else:
                found.append(ImageRef(file) if file else None)
        return found


def _foreign(array: pa.Array, kind: str, *, pixels: bool = False) -> list[Any]:
    cell = Foreign(kind, pixels)
    return [cell if valid else None for valid in pc.is_valid(array).to_pylist()]


def _leaf(array: pa.Array) -> list[Any]:
    """Cells that hold no others."""
    kind = array.type
    if types.is_moment(kind):
        return _foreign(array, f"a value of the type {kind}")
    if isinstance(kind, pa.BaseExtensionType) or types.is_decimal(kind):  # a UUID
        return [None if value is None else str(value) for value in array.to_pylist()]
    try:
        values: list[Any] = array.to_pylist()
    except UnicodeDecodeError:
        values = [_text(scalar) for scalar in array]
    except (ValueError, OverflowError, TypeError, pa.ArrowException):
        return _foreign(array, f"a value of the type {kind}")
    return values


def _text(scalar: pa.Scalar) -> str | Foreign | None:
    try:
        text: str | None = scalar.as_py()
    except UnicodeDecodeError:
        return Foreign("text that is not UTF-8")
    return text


def _files(cells: pa.Array) -> list[Any]:
    """The names beside the bytes of images."""
    if cells.type.get_field_index("path") < 0:
        return [None] * len(cells)
    return [name if isinstance(name, str) else None for name in _leaf(_opened(cells.field("path")))]


def _lengths(array: pa.Array) -> NDArray[np.int64]:
    """(K,) items of each list, 0 for null."""
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    return np.where(pc.is_valid(array).to_numpy(zero_copy_only=False), lengths, 0).astype(np.int64)


def _number_count(array: pa.Array) -> int:
    while types.is_list(array.type):
        array = array.flatten()
    return len(array)


def _depth(kind: pa.DataType) -> int:
    depth = 0
    while types.is_list(kind):
        kind, depth = kind.value_type, depth + 1
    return depth


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
        files = _files(cells)
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
