"""Columns of tables: what nobody reads does no harm, whatever its type; what is read and cannot be is a problem."""

from __future__ import annotations

import decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from triptych.errors import Problem, SampleError
from triptych.sources.readers import read_records
from triptych.sources.records import Foreign, Source
from triptych.text.conversation import Conversation, parse

NOT_UTF8 = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.array([0, 2, 4], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfeok")]
)
TEXT = pa.string()
FAR = 2**40  # seconds, after the year 9999
NUMBERS = [[0.5] * 600, None]
UNREAD: dict[str, pa.Array] = {
    "date": pa.array([2**30, None], pa.date32()),
    "timestamp": pa.array([FAR, None], pa.timestamp("s")),
    "nanoseconds": pa.array([1, None], pa.timestamp("ns")),
    "zone that nobody knows": pa.array([0, None], pa.timestamp("s", "Mars/Phobos")),
    "duration": pa.array([2**62, None], pa.duration("s")),
    "time": pa.array([1, None], pa.time64("ns")),
    "interval": pa.array([pa.MonthDayNano([1, 2, 3]), None]),
    "list of dates": pa.array([[2**30], None], pa.list_(pa.date32())),
    "object with a date": pa.array([{"who": "x", "at": 2**30}, None], pa.struct([("who", TEXT), ("at", pa.date32())])),
    "map to dates": pa.array([[("a", FAR)], None], pa.map_(pa.string(), pa.timestamp("s"))),
    "decimal": pa.array([decimal.Decimal("3.50"), None]),
    "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"x" * 16, None], pa.binary(16))),
    "json": pa.array(['{"a": 1}', None], pa.json_(pa.string())),
    "not UTF-8": NOT_UTF8,
    "not UTF-8 in a dictionary": NOT_UTF8.dictionary_encode(),
    "a key twice": pa.StructArray.from_arrays([NOT_UTF8, NOT_UTF8], ["a", "a"]),
    "embedding": pa.array(NUMBERS, pa.list_(pa.float32())),
    "image_sha256": pa.array([b"x" * 32, None], pa.binary(32)),
    "text in runs": pa.RunEndEncodedArray.from_arrays([2], ["a"]),
    "union": pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])]),
}  # fmt: skip
NO_PARQUET = ("zone that nobody knows", "duration", "interval", "a key twice", "text in runs", "union")
GOOD = {"query": pa.array(["<image>Old?"] * 2), "response": pa.array(["No."] * 2), "image": pa.array(["a.jpg"] * 2)}


def write(path: Path, columns: dict[str, pa.Array]) -> Path:
    table = pa.table(list(columns.values()), names=list(columns))
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return path


def outcomes(path: Path, **source: Any) -> list[Conversation | Problem]:
    """The conversation of each row, or its first problem."""
    found: list[Conversation | Problem] = []
    for record in read_records(str(path)):
        if isinstance(record, Problem):
            found.append(record)
            continue
        try:
            found.append(parse(record, Source(str(path), **source)))
        except SampleError as error:
            found.append(error.problems[0])
    return found


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_column_that_nobody_reads_does_no_harm(tmp_path: Path, ending: str) -> None:
    columns = {name: column for name, column in UNREAD.items() if ending == "arrow" or name not in NO_PARQUET}
    found = outcomes(write(tmp_path / f"all.{ending}", GOOD | columns))
    assert [isinstance(item, Conversation) for item in found] == [True, True], found


def test_a_column_that_is_read_says_what_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "data.arrow", GOOD | UNREAD)
    cases = {
        "date": "a value of the type date32[day]",
        "list of dates": "a list",
        "not UTF-8": "text that is not UTF-8",
        "not UTF-8 in a dictionary": "text that is not UTF-8",
        "a key twice": "an object with the key `a` twice",
        "embedding": "a list of numbers",
    }
    for name, said in cases.items():
        first, _ = outcomes(path, columns={"query": "question", "response": name}, ignore=["query"])
        assert isinstance(first, Problem), name
        first, second = outcomes(path, columns={"system": name})
        assert isinstance(first, Problem), name
        assert first.message == f"`{name}` is a string, this is {said}", name
        assert isinstance(second, Conversation) or name in ("not UTF-8", "not UTF-8 in a dictionary", "a key twice"), (
            name
        )
    first, _ = outcomes(path, columns={"system": "decimal"})
    assert isinstance(first, Conversation), "a number of fixed digits is what it reads"
    assert first.turns[0].parts == ("3.50",)


def test_one_cell_that_is_not_utf8_costs_one_row(tmp_path: Path) -> None:
    for ending in ("parquet", "arrow"):
        first, second = outcomes(write(tmp_path / f"data.{ending}", GOOD | {"response": NOT_UTF8}))
        assert isinstance(first, Problem), ending
        assert "text that is not UTF-8" in first.message, first
        assert isinstance(second, Conversation), ending
        assert second.turns[1].parts == ("ok",)


def test_two_columns_of_one_name_are_a_problem_of_the_file(tmp_path: Path) -> None:
    for ending in ("parquet", "arrow"):
        path = tmp_path / f"data.{ending}"
        columns = [*GOOD.items(), ("response", pa.array(["Yes."] * 2))]
        table = pa.table([column for _, column in columns], names=[name for name, _ in columns])
        if ending == "parquet":
            pq.write_table(table, path)
        else:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
        (found,) = outcomes(path)
        assert isinstance(found, Problem), ending
        assert "`response` is there twice" in found.message, found


def test_turns_stored_as_maps_are_objects(tmp_path: Path) -> None:
    turn = pa.map_(pa.string(), pa.string())
    turns = [[("role", "user"), ("content", "Old?")], [("role", "assistant"), ("content", "No."), ("name", None)]]
    for ending in ("parquet", "arrow"):
        (found,) = outcomes(write(tmp_path / f"data.{ending}", {"messages": pa.array([turns], pa.list_(turn))}))
        assert isinstance(found, Conversation), found
        assert [(turn.role, turn.parts) for turn in found.turns] == [("user", ("Old?",)), ("assistant", ("No.",))]


def test_many_numbers_stay_where_they_are(tmp_path: Path) -> None:
    pixels = pa.array([[[[0.5] * 600]], None], pa.list_(pa.list_(pa.list_(pa.float32()))))
    path = write(tmp_path / "data.parquet", GOOD | {"pixel_values": pixels, "boxes": pa.array([[[1, 2]], None])})
    first, second = read_records(str(path))
    assert not isinstance(first, Problem)
    assert not isinstance(second, Problem)
    assert first.data["pixel_values"] == Foreign("a list of numbers", pixels=True)
    assert (first.data["boxes"], second.data["pixel_values"]) == ([[1, 2]], None), "few numbers are read"
    found, _ = outcomes(path)
    assert isinstance(found, Problem), "pixels are an image that would be lost"
    assert "`pixel_values` holds images that are not read" in found.message
