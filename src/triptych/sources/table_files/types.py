"""What Arrow types hold: images, lists, or values that JSON has no form for."""

from __future__ import annotations

import pyarrow as pa
from pyarrow import types


def is_list(kind: pa.DataType) -> bool:
    """Whether it is a list of any layout."""
    return bool(
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
        or types.is_list_view(kind)
        or types.is_large_list_view(kind)
    )


def is_image_cell(kind: pa.DataType) -> bool:
    """Whether it is one image: ``{bytes, path}`` or plain binary."""
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type)
    return _is_bytes(kind)


def is_image(kind: pa.DataType) -> bool:
    """Whether a column holds an image in each row, or a plain list of them."""
    return is_image_cell(kind.value_type if types.is_list(kind) or types.is_large_list(kind) else kind)


def is_plain(kind: pa.DataType) -> bool:
    """Whether Python's values of it are those of JSON, at any depth: no images, dates, maps or encodings."""
    if is_list(kind):
        return is_plain(kind.value_type) and not is_numbers(kind)
    if types.is_struct(kind):
        names = [kind.field(place).name for place in range(kind.num_fields)]
        return len(set(names)) == len(names) and all(is_plain(kind.field(name).type) for name in names)
    return bool(
        types.is_null(kind)
        or types.is_boolean(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or is_text(kind)
    )


def is_numbers(kind: pa.DataType) -> bool:
    """Whether it is lists of numbers and nothing else."""
    inner = innermost(kind)
    return is_list(kind) and bool(types.is_integer(inner) or types.is_floating(inner))


def innermost(kind: pa.DataType) -> pa.DataType:
    """What lists of lists hold at last."""
    while is_list(kind):
        kind = kind.value_type
    return kind


def is_text(kind: pa.DataType) -> bool:
    """Whether it is text of any layout."""
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def is_decimal(kind: pa.DataType) -> bool:
    """Whether it is a number with a fixed number of digits."""
    return bool(types.is_decimal(kind))


def entries(kind: pa.DataType) -> pa.DataType:
    """A map as the list of its entries that it is stored as."""
    return pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)]))


def is_moment(kind: pa.DataType) -> bool:
    """Whether it is a date, a time or a duration."""
    return bool(types.is_temporal(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )
