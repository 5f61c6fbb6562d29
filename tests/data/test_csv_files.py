"""Tables of text: every cell comes out as it stands in the file, whatever its quotes and however the file is cut."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from triptych.corpus.loading import load_or_build
from triptych.errors import Problem
from triptych.sources.readers import read_records
from triptych.sources.records import Record, Source
from triptych.sources.text_files import csv_files

HEADER = ("image", "text", "answer")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("csv")


def written(rows: list[Any], delimiter: str = ",", end: str = "\n") -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=delimiter, lineterminator=end).writerows([HEADER, *rows])
    return buffer.getvalue()


def read(path: Path, size: int = csv_files.SHARD_BYTES) -> list[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_files, "SHARD_BYTES", size)
        patch.setattr(csv_files, "HEAD_BYTES", max(size, 100))
        return list(read_records(str(path)))


cells = st.text(alphabet='a",;\n\t é图', max_size=8).filter(lambda text: text.strip() and text == text.strip())


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(cells, cells, cells), max_size=8),
    size=st.integers(1, 60),
    delimiter=st.sampled_from(",\t"),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_any_rows_come_out_as_they_are(
    scratch: Path, rows: list[tuple[str, ...]], size: int, delimiter: str, end: str
) -> None:
    path = scratch / ("data.tsv" if delimiter == "\t" else "data.csv")
    path.write_bytes(written(rows, delimiter, end).encode())
    whole, found = read(path), read(path, size)
    assert [element.data for element in found] == [dict(zip(HEADER, row, strict=True)) for row in rows]
    assert [element.origin for element in found] == [element.origin for element in whole]


@pytest.mark.parametrize("size", [1, 20, csv_files.SHARD_BYTES])
def test_a_row_knows_the_line_that_it_begins_in(tmp_path: Path, size: int) -> None:
    (tmp_path / "data.csv").write_text('image,text,answer\na.png,"two\nlines",x\n\nb.png,y,z\nc.png,1\nd.png,y,z\n')
    found = read(tmp_path / "data.csv", size)
    assert [element.origin.line for element in found] == [2, 5, 6, 7]
    assert isinstance(found[2], Problem)
    assert "2 cells, but the header names 3" in found[2].message


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ending", [".csv", ".CSV", ".csv.gz", ".tsv", ".TSV"])
@pytest.mark.parametrize("delimiter", [",", ";", "|"])
def test_encodings_endings_and_separators(tmp_path: Path, encoding: str, ending: str, delimiter: str) -> None:
    content = written([("a.png", "图, é", "x")], "\t" if "tsv" in ending.lower() else delimiter).encode(encoding)
    path = tmp_path / f"data{ending}"
    path.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    assert [element.data for element in read(path)] == [{"image": "a.png", "text": "图, é", "answer": "x"}]


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("", None),
        ("  ", None),
        ("[]", []),
        ('["a.png", "b.png"]', ["a.png", "b.png"]),
        ("['a.png', 'b.png']", ["a.png", "b.png"]),
        ('[{"role": "user", "content": "x"}]', [{"role": "user", "content": "x"}]),
        ("[{'from': 'human', 'value': \"it's\"}]", [{"from": "human", "value": "it's"}]),
        ("[0.1, 0.2, 0.3, 0.4]", "[0.1, 0.2, 0.3, 0.4]"),
        ("[1, 2] is what?", "[1, 2] is what?"),
        ("{x", "{x"),
        ("12", "12"),
        ("true", "true"),
        ("[" * 500, "[" * 500),
    ],
)
def test_a_cell_is_text_or_what_it_writes(tmp_path: Path, cell: str, value: Any) -> None:
    (tmp_path / "data.csv").write_text(written([("a.png", cell, "x")]))
    (element,) = read(tmp_path / "data.csv")
    assert element.data["text"] == value


def test_a_column_without_a_name_is_the_index_of_pandas(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text(",image\n0,a.png\n")
    (element,) = read(tmp_path / "data.csv")
    assert element.data == {"image": "a.png"}


def test_a_long_cell_is_read(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text(written([("x" * 500_000, "y", "z"), ("a", "b", "c")]))
    assert [len(element.data["image"]) for element in read(tmp_path / "data.csv")] == [500_000, 1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"image,image\na,b\n", "names `image` twice"),
        (b"", "is to name the columns"),
        (b"\n\n", "is to name the columns"),
        ("image,text\na.png,比较图片\n".encode("gbk"), "iconv -f GBK"),
        ("比较,文字\na.png,x\n".encode("gbk"), "iconv -f GBK"),
    ],
)
def test_a_file_that_is_no_table_is_one_message(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "data.csv").write_bytes(content)
    (problem,) = read(tmp_path / "data.csv")
    assert isinstance(problem, Problem)
    assert said in problem.message


@settings(max_examples=150, deadline=None)
@given(content=st.text(alphabet='a",\n\r\0\t[{é', max_size=40).map(str.encode), size=st.integers(1, 20))
def test_no_text_crashes(scratch: Path, content: bytes, size: int) -> None:
    (scratch / "odd.csv").write_bytes(content)
    for element in read(scratch / "odd.csv", size):
        assert isinstance(element, Record | Problem)


@pytest.mark.parametrize("name", ["data.NDJSON", "data.ndjson", "DATA.JSONL", "data.Json", "data.JSONL.GZ"])
def test_endings_of_json_in_any_case(tmp_path: Path, name: str) -> None:
    content = json.dumps(tiny.record([], "x", "y")).encode() + b"\n"
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("GZ") else content)
    _, report = load_or_build([Source(str(tmp_path / name))], None, tmp_path / "cache")
    assert (report.samples, report.ok) == (1, 1)
