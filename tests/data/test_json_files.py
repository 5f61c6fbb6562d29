"""Cutting changes nothing: whatever the size of a shard, each element comes out whole, once, with its line."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.errors import Problem
from triptych.sources.readers import cut, read_records
from triptych.sources.records import Record
from triptych.sources.text_files import json_files

BOM = b"\xef\xbb\xbf"
SIZES = [1, 2, 3, 5, 7, 16, 33, 64, json_files.SHARD_BYTES]
ENDINGS = ["", ".gz", ".zst"]

ODD: list[dict[str, Any]] = [
    {"a": 'quotes " and \\" and \\\\', "b": "\\"},
    {"a": "brackets ]}[{ , and \\u005d", "]": "}", ",": ["[", "{"]},
    {"": {"a": [[[[{"b": [{}, [], {"c": [None, True, -1.5e-7]}]}]]]]}},
    {"a": "图片\u2028\x7f\t\r\n", "𝄞": "é"},
    {},
    {"a": "\\\\\\\\", "b": '\\\\"', "c": "x" * 300},
    {"a": [1, [2, [3, [4]]], {"b": {"c": {"d": ","}}}]},
]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json")


@contextmanager
def shards_of(size: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_files, "SHARD_BYTES", size)
        yield


def compressed(content: bytes, ending: str) -> bytes:
    if ending == ".gz":
        return gzip.compress(content)
    return pa.compress(content, "zstd", asbytes=True) if ending else content


def read(path: Path) -> list[tuple[int, Any]]:
    """(line, data or the problem's code) of each element."""
    return [
        (element.origin.line, element.data if isinstance(element, Record) else element.code)
        for element in read_records(str(path))
    ]


def read_content(folder: Path, content: bytes, size: int, ending: str = "") -> list[tuple[int, Any]]:
    path = folder / f"data.json{ending}"
    path.write_bytes(compressed(content, ending))
    with shards_of(size):
        return read(path)


def arrays(items: list[Any]) -> Iterator[bytes]:
    """The same array in several writings."""
    yield orjson.dumps(items)
    yield BOM + b" \r\n" + json.dumps(items, indent=2).encode() + b"\r\n \n"
    yield b"[\n" + b"\n,\r\n\t".join(map(orjson.dumps, items)) + b"\n]"
    yield json.dumps(items, ensure_ascii=True).encode()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("size", SIZES)
def test_an_array_is_what_it_is_as_a_whole(tmp_path: Path, size: int, ending: str) -> None:
    for content in arrays(ODD * 2):
        assert orjson.loads(content.removeprefix(BOM)) == ODD * 2
        found = read_content(tmp_path, content, size, ending)
        assert found == list(enumerate(ODD * 2, 1))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
def test_lines_are_what_each_is_alone(tmp_path: Path, size: int, ending: str, newline: bytes) -> None:
    lines = [b"", *map(orjson.dumps, ODD), b"  ", b"{broken", orjson.dumps({"a": "x" * 5000}), b"", b"[1]", b"5"]
    expected = [
        *enumerate(ODD, 2),
        (10, "bad-shape"),
        (11, {"a": "x" * 5000}),
        (13, "bad-shape"),
        (14, "bad-shape"),
    ]
    for start in (b"", BOM):
        for end in (b"", newline, newline * 3):
            content = start + newline.join(lines) + end
            if not start:
                content = b"{}" + content  # the first line must not be blank for all of these to be lines
                assert read_content(tmp_path, content, size, ending) == [(1, {}), *expected]
            else:
                assert read_content(tmp_path, content, size, ending) == expected


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("size", [1, 64, json_files.SHARD_BYTES])
def test_one_object_over_several_lines_is_one_record(tmp_path: Path, size: int, ending: str) -> None:
    content = BOM + b"\n\n" + json.dumps(ODD[2], indent=1).encode() + b"\n"
    assert read_content(tmp_path, content, size, ending) == [(3, ODD[2])]


one = b'{"a": 1}'
MALFORMED = {
    "unclosed": (b"[%b, %b", [1, 2, 0]),
    "unclosed after a comma": (b"[%b, %b,", [1, 2, 0]),
    "trailing comma": (b"[%b, %b, ]", [1, 2, 3]),
    "only a comma": (b"[,]", [1, 2]),
    "two commas": (b"[%b,, %b]", [1, 2, 3]),
    "leading comma": (b"[, %b]", [1, 2]),
    "other bracket": (b"[%b, %b}", [1, 2, 0]),
    "other bracket after a comma": (b"[%b, }", [1, 2, 0]),
    "only the other bracket": (b"[}", [0]),
    "only an opening": (b"[", [0]),
    "text behind": (b"[%b, %b] x", [1, 2, 0]),
    "text far behind": (b"[%b]" + b" " * 200 + b"[%b]", [1, 0]),
    "array behind": (b"[%b] [%b]", [1, 0]),
    "nested unclosed": (b'[%b, {"a": [1, 2}, %b]', [1, 2, 0]),
    "string unclosed": (b'[%b, {"a": "x}, %b]', [1, 2, 0]),
    "no comma": (b"[%b %b]", [1]),
    "empty": (b"[ \n ]", []),
    "wrong element": (b"[%b, {'a': 1}, [], %b]", [1, 2, 3, 4]),
    "list of no records": (b"[%b, [1, 2], %b]", [1, 2, 3]),
    "wrong record in a list": (b"[%b, [%b, 5], %b]", [1, 2, 2, 3]),
    "a comma after each line": (b"%b,\n%b,\n", [0]),
    "a comma after one line": (b"%b,\n%b\n%b", [1, 2, 3]),
    "commas between objects": (b'{\n"a": 1},\n{"a":\n1}\n', [0]),
    "objects over several lines": (b'{\n"a": 1}\n{"a":\n1}\n', [0]),
    "objects on one line": (b"%b%b", [0]),
    "objects on one of the lines": (b"%b%b\n%b", [1, 2]),
}


ONE_BY_ONE = """
[
  {"a": 1},
  {"a": 2}, [{"a": 3},
  {"a": 4}],

  {
    "a": 5
  }
  ,  {"a": 6} ]
"""


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("size", SIZES)
def test_an_element_knows_the_line_that_it_begins_in(tmp_path: Path, size: int, ending: str) -> None:
    path = tmp_path / f"data.json{ending}"
    path.write_bytes(compressed(ONE_BY_ONE.encode(), ending))
    with shards_of(size):
        found = {element.data["a"]: element.origin for element in read_records(str(path))}
    assert [str(found[number]).removeprefix(f"{path}:") for number in sorted(found)] == [
        "3, element 1",
        "4, element 2",
        "4, element 3.1",
        "4, element 3.2",
        "7, element 4",
        "10, element 5",
    ]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("size", SIZES)
def test_lists_on_lines_are_taken_apart(tmp_path: Path, size: int, ending: str) -> None:
    content = b'[{"a": 1}, {"a": 2}]\n\n[{"a": 3}]\n{"a": 4}\n'
    path = tmp_path / f"data.jsonl{ending}"
    path.write_bytes(compressed(content, ending))
    with shards_of(size):
        elements = list(read_records(str(path)))
    assert [element.data["a"] for element in elements] == [1, 2, 3, 4]
    assert [str(element.origin).rpartition(":")[2] for element in elements] == ["1.1", "1.2", "3.1", "4"]


@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value")])
def test_a_list_of_turns_is_one_conversation(tmp_path: Path, keys: tuple[str, str]) -> None:
    turns = [dict(zip(keys, pair, strict=True)) for pair in (("user", "x"), ("assistant", "y"))]
    name = "messages" if keys[0] == "role" else "conversations"
    content = json.dumps(turns).encode() + b"\n" + json.dumps(turns).encode()
    assert read_content(tmp_path, content, 64) == [(1, {name: turns}), (2, {name: turns})]
    assert read_content(tmp_path, json.dumps([turns]).encode(), 64) == [(1, {name: turns})]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("size", [1, 3, 64, json_files.SHARD_BYTES])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_every_unicode_encoding_is_read(tmp_path: Path, encoding: str, size: int, ending: str) -> None:
    items = [{"a": "图片 é 𝄞"}, {"b": 2}]
    lines = "\n".join(json.dumps(item, ensure_ascii=False) for item in items)
    for text in (json.dumps(items, ensure_ascii=False), lines):
        assert read_content(tmp_path, text.encode(encoding), size, ending) == list(enumerate(items, 1))


@pytest.mark.parametrize(
    ("encoding", "text", "named"),
    [
        ("gbk", "比较这两张图片", "iconv -f GBK -t UTF-8"),
        ("shift_jis", "これはなんですか", "iconv -f SHIFT_JIS -t UTF-8"),
        ("latin-1", "déjà vu à côté", "iconv -f WINDOWS-1252 -t UTF-8"),
    ],
)
@pytest.mark.parametrize("form", ["array", "lines"])
def test_another_encoding_is_named_with_the_remedy(
    tmp_path: Path, encoding: str, text: str, named: str, form: str
) -> None:
    line = json.dumps({"a": text}, ensure_ascii=False)
    path = tmp_path / "data.json"
    path.write_bytes((f"[{line}]" if form == "array" else f"{line}\n{line}").encode(encoding))
    elements = list(read_records(str(path)))
    assert all(isinstance(element, Problem) and named in element.message for element in elements)


@pytest.mark.parametrize("form", ["array", "lines"])
def test_what_python_writes_for_no_number_is_null(tmp_path: Path, form: str) -> None:
    items = [b'{"a": NaN, "b": [Infinity, -Infinity, 1]}', b'{"a": "NaN"}']
    content = b"[" + b",".join(items) + b"]" if form == "array" else b"\n".join(items)
    assert read_content(tmp_path, content, 64) == [(1, {"a": None, "b": [None, None, 1]}), (2, {"a": "NaN"})]


REMEDIES = {
    "comma": (b'{"a": 1},\n{"a": 2},\n', "a comma stands after each line", 1),
    "pretty": (b'{\n "a": 1\n}\n{\n "a": 2\n}\n', "jq -c .", 1),
    "pretty-commas": (b'{\n "a": 1\n},\n{\n "a": 2\n}\n', "put [ in front", 1),
    "one-line": (b'{"a": 1}{"a": 2}', "jq -c .", 1),
    "some-lines": (b'{"a": 1}\n{"a": 1}{"a": 2}\n{"a": 3},\n', "jq -c .", 3),
    "python": (b"{'a': 1}\n{'a': 2}\n", "json.dumps", 2),
    "half": (b'{"a": "\\ud83d"}\n', "half an emoji", 1),
    "half-nan": (b'{"a": "\\ud83d", "b": NaN}\n', "not valid JSON", 1),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", REMEDIES)
def test_a_common_defect_of_a_whole_file_is_one_message_with_the_remedy(tmp_path: Path, name: str, ending: str) -> None:
    content, remedy, count = REMEDIES[name]
    path = tmp_path / f"data.json{ending}"
    whole = count == 1 and "half" not in name  # then it is the same for any number of them
    path.write_bytes(compressed(content * 20 if whole else content, ending))
    elements = list(read_records(str(path)))
    problems = [element for element in elements if isinstance(element, Problem)]
    assert len(elements) == count
    assert remedy in problems[0].message


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_array_gives_the_same_problems_however_it_is_cut(
    tmp_path: Path, name: str, size: int, ending: str
) -> None:
    pattern, lines = MALFORMED[name]
    content = pattern.replace(b"%b", one)
    found = read_content(tmp_path, content, size, ending)
    assert [line for line, _ in found] == lines
    assert found == read_content(tmp_path, content, json_files.SHARD_BYTES)
    good = [data for _, data in found if data != "bad-shape"]
    assert all(data == {"a": 1} for data in good)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("form", ["array", "lines"])
@pytest.mark.parametrize("size", [64, 4096, json_files.SHARD_BYTES])
def test_what_stands_in_front_of_damage_is_kept(tmp_path: Path, ending: str, form: str, size: int) -> None:
    items = [{"number": number, "a": str(number**7) * 9} for number in range(2000)]
    lines = list(map(orjson.dumps, items))
    content = b"\n".join(lines) if form == "lines" else b"[" + b",".join(lines) + b"]"
    whole = compressed(content, ending)
    path = tmp_path / f"data.json{ending}"
    kept = []
    for share in (0.0005, 0.3, 0.7, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with shards_of(size):
            elements = list(read_records(str(path)))
        assert isinstance(elements[-1], Problem)
        assert (elements[-1].origin.line, elements[-1].code) == (0, "bad-shape")
        assert "damaged or cut off" in elements[-1].message
        good = [element.data for element in elements if isinstance(element, Record)]
        assert good == items[: len(good)]
        assert len(elements) - len(good) <= 2, "the file, and the element that was cut"
        kept.append(len(good) / len(items))
    assert kept == sorted(kept)
    if ending == ".gz":
        assert kept[1] > 0.2
        assert kept[3] > 0.98

    spoiled = bytearray(whole)
    spoiled[len(whole) // 2 :] = b"\xff" * (len(whole) - len(whole) // 2)
    path.write_bytes(spoiled)
    with shards_of(size):
        *_, last = read_records(str(path))
    assert isinstance(last, Problem)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_damage_behind_the_last_element_is_said_too(tmp_path: Path, ending: str) -> None:
    for content in (
        b"[" + b",".join([one] * 500) + b"]",
        b"\n".join([one] * 500),
        json.dumps(ODD[2], indent=1).encode(),
    ):
        for size in (64, json_files.SHARD_BYTES):
            path = tmp_path / f"data.json{ending}"
            path.write_bytes(compressed(content, ending)[:-1])
            with shards_of(size):
                *_, last = read_records(str(path))
            assert isinstance(last, Problem)
            assert "damaged or cut off" in last.message


def test_files_compressed_in_pieces_are_read_on(tmp_path: Path) -> None:
    for ending in (".gz", ".zst"):
        path = tmp_path / f"data.jsonl{ending}"
        path.write_bytes(b"".join(compressed(one + b"\n", ending) for _ in range(3)))
        assert read(path) == [(line, {"a": 1}) for line in (1, 2, 3)]


texts = st.text(alphabet='a"\\[]{},:\n \u00e9', max_size=12) | st.text(max_size=5)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | texts
)
values = st.recursive(
    scalars,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(texts, children, max_size=4),
    max_leaves=15,
)
objects = st.lists(st.dictionaries(texts, values, max_size=4), max_size=6)


@settings(max_examples=200, deadline=None)
@given(items=objects, size=st.integers(1, 64), writing=st.integers(0, 3), ending=st.sampled_from(ENDINGS))
def test_any_array_is_what_it_is_as_a_whole(
    scratch: Path, items: list[Any], size: int, writing: int, ending: str
) -> None:
    content = list(arrays(items))[writing]
    expected = orjson.loads(content.removeprefix(BOM))
    assert read_content(scratch, content, size, ending) == list(enumerate(expected, 1))


@settings(max_examples=200, deadline=None)
@given(items=objects, size=st.integers(1, 64), ending=st.sampled_from(ENDINGS), data=st.data())
def test_any_lines_are_what_each_is_alone(
    scratch: Path, items: list[Any], size: int, ending: str, data: st.DataObject
) -> None:
    lines, expected = [b"{}"], [(1, {})]
    for item in items:
        lines += [data.draw(st.sampled_from([b"", b" ", b"\r"]))] * data.draw(st.integers(0, 2))
        lines.append(orjson.dumps(item) + data.draw(st.sampled_from([b"", b"\r", b" "])))
        expected.append((len(lines), orjson.loads(lines[-1])))
    assert read_content(scratch, b"\n".join(lines), size, ending) == expected


@settings(max_examples=200, deadline=None)
@given(content=st.text(alphabet='[]{}",:\\ \n01a', max_size=40).map(str.encode), size=st.integers(1, 20))
def test_any_text_gives_the_same_however_it_is_cut(scratch: Path, content: bytes, size: int) -> None:
    whole = read_content(scratch, content, json_files.SHARD_BYTES)
    assert read_content(scratch, content, size) == whole


def test_a_large_file_has_shards_of_the_usual_size(tmp_path: Path) -> None:
    items = [{"a": "x" * 500}] * 10_000
    for content in (orjson.dumps(items), b"\n".join(map(orjson.dumps, items))):
        for ending in ENDINGS:
            path = tmp_path / f"data.json{ending}"
            path.write_bytes(compressed(content, ending))
            shards = list(cut(str(path)))
            lengths = [shard.end - shard.start for shard in shards]
            assert max(lengths) < 2.1 * json_files.SHARD_BYTES
            assert 9 <= len(shards) <= 24
            assert sum(shard.weight for shard in shards) == path.stat().st_size, "a progress bar ends at its end"


PEAK = """
import sys
from pathlib import Path
from triptych.sources.readers import read_records

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

next(iter(read_records(sys.argv[2])))
before = peak()
print(sum(1 for _ in read_records(sys.argv[1])), peak() - before)
"""


@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data.json.gz"])
def test_a_large_file_is_never_in_memory(tmp_path: Path, name: str) -> None:
    count, element = 60_000, orjson.dumps({"conversations": [{"from": "human", "value": "word, [" * 140}]})
    lines = [element] * count
    content = b"\n".join(lines) if name.endswith("l") else b"[" + b",\n".join(lines) + b"]"
    assert len(content) > 60e6
    path = tmp_path / name
    path.write_bytes(gzip.compress(content, 1) if name.endswith("gz") else content)
    (tmp_path / "small.json").write_bytes(b"[" + element + b"]")
    command = [sys.executable, "-c", PEAK, str(path), str(tmp_path / "small.json")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    found, kilobytes = map(int, run.stdout.split())
    assert found == count
    assert kilobytes < 30_000, "60 MB of text"


DOUBLED = {
    "images": b'{"image": "a.png", "image": "b.png", "conversations": []}',
    "content of a turn": b'{"messages": [{"role": "user", "content": "One", "content": "Two"}]}',
    "spaces": b'{"image" : "a.png","image" :"b.png"}',
    "deep": b'{"meta": {"a": [{"b": 1, "b": 2}]}}',
    "tabs and line ends": b'{"image"\t:"a.png","image"\r:"b.png", "c"  :1}',
    "beside a key that ends in a backslash": b'{"a\\\\": 1, "b": 1, "b": 2}',
    "beside text that looks like keys": b'{"q": "say \\"x\\": 1, \\"x\\" : 2", "a": 1, "a": "2"}',
}
ONCE = {
    "same value": b'{"image": "a.png", "image": "a.png"}',
    "text that looks like keys": b'{"q": "{\\"a\\": 1, \\"a\\": 2}", "a": 1}',
    "same key in two objects": b'{"messages": [{"role": "user"}, {"role": "assistant"}]}',
    "odd keys": b'{"a\\"": 1, ":": 2, "\\\\": 3, "": 4}',
    "a URL": b'{"url": "https://x/y", "t": "12:30"}',
}


@pytest.mark.parametrize("form", ["array", "lines", "object", "lists"])
@pytest.mark.parametrize("size", [1, 64, json_files.SHARD_BYTES])
def test_a_key_with_two_values_is_refused_in_its_place(tmp_path: Path, form: str, size: int) -> None:
    plain = b'{"question": "x", "answer": "y"}'
    for name, element in (DOUBLED | ONCE).items():
        content = {
            "array": b"[%b,\n%b,\n%b]" % (plain, element, plain),
            "lines": b"%b\n%b\n%b\n" % (plain, element, plain),
            "object": element.replace(b"{", b"{\n", 1),
            "lists": b"[%b]\n[%b]\n[%b]\n" % (plain, element, plain),
        }[form]
        path = tmp_path / "data.json"
        path.write_bytes(content)
        with shards_of(size):
            found = list(read_records(str(path)))
        place = 0 if form == "object" else 1
        assert len(found) == (1 if form == "object" else 3), name
        if name in ONCE:
            assert all(isinstance(item, Record) for item in found), name
            continue
        problem = found[place]
        assert isinstance(problem, Problem), name
        assert problem.origin.line == place + 1, name
        assert "twice in one object" in problem.message, name
        assert sum(isinstance(item, Record) for item in found) == 2 * place, name
