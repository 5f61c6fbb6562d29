"""Parquet files and saved ``datasets`` folders hold the samples that JSON and image files hold."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from containers import Samples, write_samples

from triptych.errors import ConfigError, Problem
from triptych.images import measure
from triptych.sources.readers import cut, read_records
from triptych.sources.records import Record, Source
from triptych.sources.table_files import tables

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TURNS = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))
PARTS = pa.list_(pa.struct([("type", pa.string()), ("text", pa.string())]))
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", PARTS)]))
Cell = Callable[[Samples, str], Any]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Samples:
    return write_samples(tmp_path_factory.mktemp("samples"), model_dir)


def with_bytes(samples: Samples, name: str) -> Any:
    return {"bytes": samples.content(name), "path": Path(name).name}


def nameless(samples: Samples, name: str) -> Any:
    return {"bytes": samples.content(name), "path": None}


def by_path(samples: Samples, name: str) -> Any:
    return {"bytes": None, "path": str(samples.folder / name)}


def mixed(samples: Samples, name: str) -> Any:
    return (by_path if name.endswith("-1.jpg") else with_bytes)(samples, name)


def plain(samples: Samples, name: str) -> Any:
    return samples.content(name)


def relative(_: Samples, name: str) -> Any:
    return name


def table(samples: Samples, cell: Cell, kind: pa.DataType, *, null: bool = False) -> pa.Table:
    """All samples; without images the list is empty, or ``null``."""
    pictures = [[cell(samples, name) for name in record["images"]] for record in samples.records]
    columns = {
        "conversations": pa.array([record["conversations"] for record in samples.records], TURNS),
        "images": pa.array([item or (None if null else []) for item in pictures], kind),
        "task": pa.array([record["task"] for record in samples.records]),
    }
    return pa.table(columns)


def write_parquet(path: Path, content: pa.Table, **options: Any) -> Path:
    pq.write_table(content, path, row_group_size=4, **options)
    return path


def write_stream(path: Path, content: pa.Table) -> Path:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, content.schema) as writer:
        writer.write_table(content, max_chunksize=5)
    return path


def write_file(path: Path, content: pa.Table) -> Path:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, content.schema) as writer:
        writer.write_table(content, max_chunksize=5)
    return path


WAYS = {
    "bytes and path": (with_bytes, pa.list_(IMAGE)),
    "bytes without path": (nameless, pa.list_(IMAGE)),
    "path without bytes": (by_path, pa.list_(IMAGE)),
    "some bytes, some paths": (mixed, pa.list_(IMAGE)),
    "large list": (with_bytes, pa.large_list(pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())]))),
    "bytes only": (lambda s, n: {"bytes": s.content(n)}, pa.list_(pa.struct([("bytes", pa.binary())]))),
    "binary": (plain, pa.list_(pa.binary())),
    "file names": (relative, pa.list_(pa.string())),
}


@pytest.mark.parametrize("null", [False, True], ids=["empty list", "null"])
@pytest.mark.parametrize("form", ["parquet", "stream", "file"])
@pytest.mark.parametrize("way", WAYS)
def test_a_column_of_images_holds_what_files_hold(
    samples: Samples, tmp_path: Path, way: str, form: str, null: bool
) -> None:
    content = table(samples, *WAYS[way], null=null)
    write = {"parquet": write_parquet, "stream": write_stream, "file": write_file}[form]
    path = write(tmp_path / f"data.{'parquet' if form == 'parquet' else 'arrow'}", content)
    corpus = samples.check_equal(tmp_path / "cache", path, media_dir=str(samples.folder))
    assert [corpus.origin(index).line for index in range(len(corpus))] == list(range(1, 13)), "rows"
    assert len(list(cut(str(path)))) == 3


@pytest.mark.parametrize("statistics", [True, False])
def test_one_image_in_a_row_needs_no_list(samples: Samples, tmp_path: Path, statistics: bool) -> None:
    only = [number for number, record in enumerate(samples.records) if len(record["images"]) < 2]
    rows = [samples.records[number] for number in only]
    for number, cell in enumerate((with_bytes, mixed, plain, by_path)):
        cells = [cell(samples, row["images"][0]) if row["images"] else None for row in rows]
        columns = {
            "image": pa.array(cells, pa.binary() if cell is plain else IMAGE),
            "conversations": pa.array([row["conversations"] for row in rows], TURNS),
            "task": pa.array([row["task"] for row in rows]),
        }
        content = pa.table(columns)
        path = write_parquet(tmp_path / f"{number}.parquet", content, write_statistics=statistics)
        samples.check_equal(tmp_path / "cache", path, only=only)
        samples.check_equal(tmp_path / "cache", write_stream(tmp_path / f"{number}.arrow", content), only=only)


def test_messages_may_be_lists_of_parts(samples: Samples, tmp_path: Path) -> None:
    def parts(text: str) -> list[dict[str, str | None]]:
        *marks, words = text.split("<image>")
        return [*({"type": "image", "text": None} for _ in marks), {"type": "text", "text": words}]

    roles = {"human": "user", "gpt": "assistant"}
    messages = [
        [{"role": roles[turn["from"]], "content": parts(turn["value"])} for turn in record["conversations"]]
        for record in samples.records
    ]
    content = table(samples, with_bytes, pa.list_(IMAGE)).drop_columns(["conversations"])
    content = content.append_column("messages", pa.array(messages, MESSAGES))
    samples.check_equal(tmp_path / "cache", write_parquet(tmp_path / "parts.parquet", content))


def test_a_column_may_have_any_name(samples: Samples, tmp_path: Path) -> None:
    content = table(samples, with_bytes, pa.list_(IMAGE)).rename_columns(["a.talk", "a.images", "task"])
    path = write_parquet(tmp_path / "named.parquet", content)
    columns = {"conversations": "a.talk", "images": "a.images"}
    samples.check_equal(tmp_path / "cache", path, columns=columns)


def saved(samples: Samples, folder: Path, **options: Any) -> Any:
    """The samples as a data set of the library itself."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "conversations": [{"from": datasets.Value("string"), "value": datasets.Value("string")}],
            "images": datasets.Sequence(datasets.Image()),
            "task": datasets.Value("string"),
        }
    )
    rows = [
        {**record, "images": [str(samples.folder / name) for name in record["images"]]} for record in samples.records
    ]
    made = datasets.Dataset.from_list(rows, features=features)
    if options.pop("parquet", False):
        made.to_parquet(folder, **options)
    else:
        made.save_to_disk(folder, **options)
    return made


@pytest.mark.filterwarnings("ignore")
def test_what_the_datasets_library_writes_is_read(samples: Samples, tmp_path: Path) -> None:
    saved(samples, tmp_path / "hub.parquet", parquet=True, batch_size=5)
    samples.check_equal(tmp_path / "cache", tmp_path / "hub.parquet")
    saved(samples, tmp_path / "folder", num_shards=3)
    assert len(Source(str(tmp_path / "folder")).files()) == 3
    corpus = samples.check_equal(tmp_path / "cache", tmp_path / "folder")
    assert [corpus.origin(index).line for index in range(12)] == [1, 2, 3, 4] * 3, "rows of each file"


@pytest.mark.filterwarnings("ignore")
def test_a_folder_that_cannot_be_read_as_one_table_says_what_to_name(samples: Samples, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = saved(samples, tmp_path / "one")
    datasets.DatasetDict({"train": made, "validation": made}).save_to_disk(tmp_path / "splits")
    with pytest.raises(ConfigError, match=r"several splits.*splits/train, .*splits/validation"):
        Source(str(tmp_path / "splits")).files()
    samples.check_equal(tmp_path / "cache", tmp_path / "splits" / "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no saved `datasets` folder"):
        Source(str(tmp_path / "empty")).files()
    for text in ("{", "[]", '{"_data_files": [{}]}', '{"_data_files": 5}'):
        (tmp_path / "empty" / "state.json").write_text(text)
        with pytest.raises(ConfigError, match=r"state\.json"):
            Source(str(tmp_path / "empty")).files()


@pytest.fixture
def columns_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Leaves of Parquet columns that are read from now on."""
    found: list[str] = []
    real = pq.ParquetFile.read_row_group

    def read(self: pq.ParquetFile, group: int, columns: list[str], **options: Any) -> pa.Table:
        found.extend(columns)
        return real(self, group, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", read)
    return found


@pytest.mark.parametrize("null", [False, True], ids=["empty list", "null"])
@pytest.mark.parametrize("cell", [with_bytes, nameless])
def test_text_is_read_without_the_bytes_of_images(
    samples: Samples, tmp_path: Path, columns_read: list[str], null: bool, cell: Cell
) -> None:
    path = write_parquet(tmp_path / "a.parquet", table(samples, cell, pa.list_(IMAGE), null=null))
    records = list(read_records(str(path)))
    assert [len(record.data["images"] or ()) for record in records if isinstance(record, Record)] == [
        len(record["images"]) for record in samples.records
    ]
    assert "images.list.element.path" in columns_read
    assert not {"images", "images.list.element.bytes"} & {*columns_read}


def test_an_image_without_bytes_or_path_is_a_problem_of_its_row(samples: Samples, tmp_path: Path) -> None:
    content = table(samples, with_bytes, pa.list_(IMAGE))
    rows = content.column("images").to_pylist()
    rows[2], rows[5] = [None] * len(rows[2] or [1]), [{"bytes": None, "path": None}] * len(rows[5] or [1])
    rows[7] = [{"bytes": b"", "path": "x"}] * len(rows[7])
    content = content.set_column(1, "images", pa.array(rows, pa.list_(IMAGE)))
    for path in (write_parquet(tmp_path / "a.parquet", content), write_stream(tmp_path / "a.arrow", content)):
        _, report = samples.load(tmp_path / "cache", path)
        codes = {(problem.origin.line, problem.code) for problem in report.problems}
        assert codes == {(3, "marker-count"), (6, "marker-count"), (8, "image-unreadable")}


def test_rows_of_other_types_are_coded_problems(samples: Samples, tmp_path: Path) -> None:
    odd = pa.table(
        {
            "conversations": pa.array(["x", None, "y"]),
            "images": pa.array([[b"a"], None, []], pa.list_(pa.binary())),
            "when": pa.array([0, 1, None], pa.timestamp("ns")),
            "map": pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int64())),
        }
    )
    for path in (write_parquet(tmp_path / "a.parquet", odd), write_stream(tmp_path / "a.arrow", odd)):
        _, report = samples.load(tmp_path / "cache", path)
        assert [(problem.origin.line, problem.code) for problem in report.problems] == [
            (line, "bad-shape") for line in (1, 2, 3)
        ]
    empty = odd.slice(0, 0)
    for path in (write_parquet(tmp_path / "b.parquet", empty), write_stream(tmp_path / "b.arrow", empty)):
        assert samples.load(tmp_path / "cache", path)[1].samples == 0


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_a_container_that_changed_is_noticed(samples: Samples, tmp_path: Path, form: str) -> None:
    write = write_parquet if form == "parquet" else write_stream
    path = write(tmp_path / f"data.{form}", table(samples, with_bytes, pa.list_(IMAGE)))
    corpus = samples.check_equal(tmp_path / "cache", path)
    location = next(image.location for index in range(12) for image in corpus.images(index))
    other = table(samples, with_bytes, pa.list_(IMAGE)).take(list(range(11, -1, -1)))
    (tmp_path / "new").mkdir()
    os.replace(write(tmp_path / "new" / path.name, other), path)
    samples.check_equal(tmp_path / "cache", path, only=list(range(11, -1, -1)))
    os.replace(write(tmp_path / "new" / path.name, other.slice(0, 0)), path)
    with pytest.raises(measure.ImageError, match="changed"), measure.open_bytes(location):
        pass


def test_a_damaged_group_loses_its_rows_and_no_others(samples: Samples, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", table(samples, with_bytes, pa.list_(IMAGE)))
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(1)
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)
    elements = list(read_records(str(path)))
    (problem,) = (element for element in elements if isinstance(element, Problem))
    assert (problem.code, problem.origin.line) == ("bad-shape", 0)
    assert [element.origin.line for element in elements if isinstance(element, Record)] == [1, 2, 3, 4, 9, 10, 11, 12]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize("content", [b"", b"PAR1", b"ARROW1\0\0", b"[1, 2]" * 100, bytes(500)])
def test_a_file_that_is_none_ends_the_run_with_its_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=name):
        list(read_records(str(tmp_path / name)))


def test_a_cell_is_found_by_its_place_or_the_file_changed(samples: Samples, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", table(samples, with_bytes, pa.list_(IMAGE)))
    row, names = next((n, r["images"]) for n, r in enumerate(samples.records) if len(r["images"]) > 1)
    for place, name in enumerate(names):
        assert tables.cell(str(path), row // 4, row % 4, "images", place) == samples.content(name)
    for wrong in ((9, 0, "images", 0), (0, 99, "images", 0), (0, 0, "nope", 0), (0, 0, "images", 99)):
        with pytest.raises(OSError, match="changed"):
            tables.cell(str(path), *wrong)
