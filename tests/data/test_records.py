"""Reading data files: every element has its place, and nothing in a file is worse than a coded problem."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.errors import ConfigError, Problem
from triptych.sources.readers import read_records
from triptych.sources.records import Record, Source

GOOD = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}'

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records")


def read(folder: Path, content: bytes, name: str = "data.jsonl") -> list[tuple[int, str]]:
    """(line, "record" or the problem's code) of each element."""
    path = folder / name
    path.write_bytes(content)
    elements = list(read_records(str(path)))
    assert all(element.origin.path == str(path) for element in elements)
    return [(element.origin.line, "record" if isinstance(element, Record) else element.code) for element in elements]


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_the_content_not_the_extension_says_how_a_file_is_read(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, b"[" + GOOD + b",\n\n" + GOOD + b"]", name) == [(1, "record"), (2, "record")]
    assert read(tmp_path, GOOD + b"\n\n" + GOOD, name) == [(1, "record"), (3, "record")]


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
def test_lines_keep_their_numbers_across_blank_lines_and_line_ends(tmp_path: Path, start: bytes, end: bytes) -> None:
    lines = [GOOD, b"", b"  \t", GOOD, b"{broken", GOOD, b""]
    expected = [(1, "record"), (4, "record"), (5, "bad-shape"), (6, "record")]
    assert read(tmp_path, start + end.join(lines)) == expected
    assert read(tmp_path, start + b"[" + end + GOOD + end + b"]") == [(1, "record")]


def test_one_object_over_several_lines_is_one_record(tmp_path: Path) -> None:
    pretty = json.dumps(json.loads(GOOD), indent=2).encode()
    assert read(tmp_path, b"\n" + pretty + b"\n") == [(2, "record")]
    assert read(tmp_path, GOOD) == [(1, "record")]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b" \n\r\n ", []),
        (b"[]", []),
        (b"[" + GOOD + b"," + GOOD, [(1, "record"), (2, "record"), (0, "bad-shape")]),
        (b"[" + GOOD + b",]", [(1, "record"), (2, "bad-shape")]),
        (b"[" + GOOD + b", {'a': 1}, " + GOOD + b"]", [(1, "record"), (2, "bad-shape"), (3, "record")]),
        (b"[" + GOOD + b",, " + GOOD + b"]", [(1, "record"), (2, "bad-shape"), (3, "record")]),
        (b"[" + GOOD + b', {"a": "}, ' + GOOD + b"]", [(1, "record"), (2, "bad-shape"), (0, "bad-shape")]),
        (b"[" + GOOD + b"}", [(1, "record"), (0, "bad-shape")]),
        (b"[" + GOOD + b"]\n[" + GOOD + b"]", [(1, "record"), (2, "record")]),
        (
            b"[1, null, [], " + GOOD + b', "x"]',
            [*((n, "bad-shape") for n in (1, 2, 3)), (4, "record"), (5, "bad-shape")],
        ),
        (b'1\nnull\n"x"\ntrue', [(n, "bad-shape") for n in (1, 2, 3, 4)]),
        (GOOD + GOOD, [(0, "bad-shape")]),
        (GOOD + b"\r" + GOOD, [(0, "bad-shape")]),
        (b"{'messages': []}", [(1, "bad-shape")]),
        (b'{"a": NaN}\n{"a": Infinity}\n{"a": 1e999}', [(1, "record"), (2, "record"), (3, "bad-shape")]),
        (b'{"a": ' + b"9" * 5000 + b"}", [(1, "bad-shape")]),
        (b'{"a": 123456789012345678901234567890}', [(1, "record")]),
        (b'{"a": "\\ud800"}', [(1, "bad-shape")]),
        (GOOD + b'\n{"a": "\xe9"}\n' + GOOD, [(1, "record"), (2, "bad-shape"), (3, "record")]),
        (b"[" * 100_000, [(1, "bad-shape"), (0, "bad-shape")]),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, [(1, "bad-shape")]),
        (b"\0\0\0", [(0, "bad-shape")]),  # what an interrupted copy leaves: of the file, not of a line
        (("[" + GOOD.decode() + "]").encode("utf-16"), [(1, "record")]),
    ],
)
def test_a_malformed_element_is_a_problem_at_its_place(tmp_path: Path, content: bytes, expected: list[Any]) -> None:
    assert read(tmp_path, content) == expected


def test_bytes_that_are_not_utf_8_are_said_to_be_that(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes(b'{"a": "\xe9"}')
    (problem,) = read_records(str(tmp_path / "latin.jsonl"))
    assert isinstance(problem, Problem)
    assert "not UTF-8" in problem.message


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=60) | st.text(alphabet='[]{}",: \n0aé', max_size=40).map(str.encode))
def test_no_bytes_raise(scratch: Path, content: bytes) -> None:
    assert {kind for _, kind in read(scratch, content)} <= {"record", "bad-shape"}


@settings(max_examples=50, deadline=None)
@given(items=st.lists(st.dictionaries(st.text(), json_values, max_size=4), max_size=5))
def test_an_array_and_lines_of_the_same_objects_give_the_same_records(scratch: Path, items: list[Any]) -> None:
    array, lines = scratch / "array.json", scratch / "lines.jsonl"
    array.write_text(json.dumps(items), encoding="utf-8")
    lines.write_text("\n".join(json.dumps(item) for item in items), encoding="utf-8")
    from_array, from_lines = list(read_records(str(array))), list(read_records(str(lines)))
    assert all(isinstance(record, Record) for record in from_array)
    assert [record.data for record in from_array] == [record.data for record in from_lines] == items
    assert [record.origin.line for record in from_array] == [record.origin.line for record in from_lines]


def test_files_come_in_a_stable_order_and_each_once(tmp_path: Path) -> None:
    for name in ("b.json", "a.jsonl", "c/d.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    root = str(tmp_path)
    source = Source((f"{root}/b.json", f"{root}/*.json*", f"{root}/**/*.json"))
    assert source.files() == [f"{root}/b.json", f"{root}/a.jsonl", f"{root}/c/d.json"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    path = tmp_path / "data[1].json"
    path.touch()
    assert Source(str(path)).files() == [str(path)]


@pytest.mark.parametrize("name", ["missing.json", "*.jsonl", "folder", "table.xlsx", "nul\0.json", "nul\0/*.json"])
def test_what_is_no_data_file_ends_the_run_with_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "table.xlsx").touch()
    with pytest.raises(ConfigError, match=name.split("\0")[0].replace("*", r"\*")):
        Source(str(tmp_path / name)).files()


def test_a_file_name_that_is_not_utf_8_ends_the_run_before_anything_is_written(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.json"
    try:
        with open(path, "wb"):
            pass
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(ConfigError, match="not UTF-8"):
        Source(str(tmp_path / "*.json")).files()


def test_a_file_that_cannot_be_read_ends_the_run_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.json"):
        list(read_records(str(tmp_path / "gone.json")))


def test_images_start_from_the_media_folder_or_else_from_the_data_file(tmp_path: Path) -> None:
    assert Source("x", media_dir="images").media_root("data/x.json") == "images"
    assert Source("x").media_root(str(tmp_path / "x.json")) == str(tmp_path)
