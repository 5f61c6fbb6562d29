"""``triptych convert``: what a model reads of a record is the same before and after, whatever its shape."""

from __future__ import annotations

import base64
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import tiny
from commands import said
from triptych.commands.convert import convert
from triptych.commands.options import SourceOptions
from triptych.corpus.corpus import Corpus
from triptych.corpus.examine import Encoder
from triptych.corpus.execution.executor import LocalEngine
from triptych.corpus.loading import load_or_build
from triptych.errors import ConfigError
from triptych.exporting.serving.notes import image_notes
from triptych.family.family import read_model_files
from triptych.images.pixels import load_patches, load_rgb
from triptych.sources.records import Source
from triptych.text.layout import Budget

sys.path.append(str(Path(__file__).parent / "data"))
from test_format_page import READ, settings

IMAGES = ("a.jpg", "b.jpg", "set/one/a.jpg", "small.jpg", "c.png")
USER = {"role": "user", "content": "<image>Old?"}
WELL = {"role": "user", "content": "Well?"}
ANSWER = {"role": "assistant", "content": "No."}
Case = tuple[dict[str, Any], dict[str, Any]]


def turns(*said: Any, **more: Any) -> dict[str, Any]:
    """A record of turns; what is a list is the parts of a question."""
    found = [turn if isinstance(turn, dict) else {"role": "user", "content": turn} for turn in said]
    return {"messages": found, **more}


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


IMAGE = {"type": "image", "path": "a.jpg"}
ONE, TWO = {"images": ["a.jpg"]}, {"images": ["a.jpg", "c.png"]}
SHOW = {"role": "gpt", "content": "<image>Here<image>"}
MORE: dict[str, Case] = {
    "a mark in a text part": (turns([text("What is <image>?")], ANSWER), {}),
    "marks of other tools in a text part": (turns([text("Is <image_1> or <ImageHere>")], ANSWER), {}),
    "a mark beside an image": (turns([IMAGE, text("<image>")], ANSWER), {}),
    "control strings": (
        turns([text("<|im_end|><|image_pad|>"), text(" <video>")], {**ANSWER, "content": "<|im_end|>"}),
        {},
    ),
    "another mark, and <image> as text": ({"query": "[img]<image>?", "response": "No.", **ONE}, {"mark": "[img]"}),
    "white space": ({"query": " \n<image>\t\n ", "response": " No. \n", **ONE}, {}),
    "an empty question": (turns("", ANSWER), {}),
    "a system prompt with an image": (turns(USER, ANSWER, system="Like <image>.", **TWO), {}),
    "turns kept apart": (turns(USER, WELL, ANSWER, **ONE), {"roles": "keep"}),
    "images in an answer": (turns("Show.", SHOW, **TWO), {}),
    "not learned": (turns(USER, {**ANSWER, "train": False}, WELL, ANSWER, **ONE), {}),
    "weights": (turns(USER, {**ANSWER, "weight": 0.5}, WELL, ANSWER, sample_weight=2, **ONE), {}),
    "only the last answer": (turns(USER, ANSWER, WELL, ANSWER, **ONE), {"supervise": "last"}),
    "all text": (turns(USER, ANSWER, WELL, ANSWER, **ONE), {"supervise": "all"}),
    "a task and an id": (turns(USER, ANSWER, id=7, task=3, **ONE), {}),
    "in base64": (turns(USER, ANSWER, image={"bytes": "BASE64"}), {}),
    "one image twice": ({"query": "<i1> <i2> <i1>", "response": "No.", **TWO}, {"mark": "<i{n}>"}),
}
NEEDED = (("roles", "keep"), ("supervise", "all"))
"""Settings that no record can take the place of."""
CASES: dict[str, Case] = {
    **{row[0]: (json.loads(row[1].strip("`")), settings(row[2] if len(row) > 2 else "")) for row in READ},
    **MORE,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("convert")
    for number, name in enumerate(IMAGES):
        tiny.write_image(path / name, 60 + 20 * number, 90, seed=number)
    return path


@pytest.fixture(scope="module")
def encoder(model_dir: Path) -> Encoder:
    return encoder_of(model_dir)


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """Of a family whose template renders tools and thoughts, and refuses some orders of turns."""
    return encoder_of(tiny.write_model(tmp_path_factory.mktemp("model"), family="qwen3_5"))


def encoder_of(folder: Path) -> Encoder:
    files = read_model_files(str(folder))
    return Encoder(files.template(), files.geometry, Budget(), files.text_hash())


def load(path: Path, encoder: Encoder, cache: Path, **source: Any) -> Corpus:
    corpus, report = load_or_build([Source(str(path), **source)], encoder, cache, LocalEngine(1))
    assert report.problems == [], path
    return corpus


def assert_same(before: Corpus, after: Corpus) -> None:
    """That a model sees the same samples."""
    assert len(before) == len(after)
    for number in range(len(before)):
        mine, theirs = before.layout(number), after.layout(number)
        for name in ("input_ids", "supervised", "position_ids", "grids"):
            assert np.array_equal(getattr(mine, name), getattr(theirs, name)), (number, name)
        assert before.task(number) == after.task(number)
        contents = [[read(image.location) for image in corpus.images(number)] for corpus in (before, after)]
        assert contents[0] == contents[1], "the bytes of the images"


def read(location: str) -> bytes:
    from triptych.images.measure import open_bytes

    with open_bytes(location) as file:
        return file.read()


@pytest.mark.parametrize("name", CASES)
def test_a_record_is_the_same_before_and_after(
    folder: Path, encoder: Encoder, thinking: Encoder, tmp_path: Path, name: str
) -> None:
    data, source = CASES[name]
    encoder = thinking if "tools" in data or "reasoning_content" in json.dumps(data) else encoder
    inline = base64.b64encode((folder / "c.png").read_bytes()).decode()
    path, to = folder / "data.jsonl", tmp_path / "out" / "plain.jsonl"
    path.write_text(json.dumps(data).replace("BASE64", inline), encoding="utf-8")
    options = SourceOptions(
        **{key: value for key, value in source.items() if isinstance(value, str)},
        **{key: [json.dumps(value)] for key, value in source.items() if isinstance(value, dict)},
        ignore=source.get("ignore"),
    )
    assert convert([str(path)], to, source=options, engine=LocalEngine(1)) == 0
    (line,) = to.read_text(encoding="utf-8").splitlines()
    plain = json.loads(line)
    assert set(plain) <= {"id", "messages", "images", "task", "weight", "objects", "tools"}
    assert plain.get("id") == data.get("id")
    keep = {name: value for name, value in source.items() if (name, value) in NEEDED}
    before = load(path, encoder, tmp_path / "cache", **source)
    assert_same(before, load(to, encoder, tmp_path / "cache", **keep))
    again = tmp_path / "again.jsonl"
    assert convert([str(to)], again, source=SourceOptions(**keep), engine=LocalEngine(1)) == 0
    assert again.read_text(encoding="utf-8") == to.read_text(encoding="utf-8"), "and stays as it is"


def test_images_inside_files_become_files(folder: Path, encoder: Encoder, tmp_path: Path) -> None:
    images = [[{"bytes": (folder / name).read_bytes(), "path": name} for name in ("a.jpg", "c.png", "a.jpg")], []]
    turns = [[{"role": "user", "content": "<image>" * len(row) + "Old?"}, ANSWER] for row in images]
    table = pa.table({"messages": turns, "images": images})
    pq.write_table(table, tmp_path / "data.parquet")
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        for name, content in (
            ("1.json", json.dumps({"messages": [USER, ANSWER]}).encode()),
            ("1.jpg", (folder / "a.jpg").read_bytes()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    for name, files in (("data.parquet", 2), ("data.tar", 1)):
        to = tmp_path / name.replace(".", "_") / "plain.jsonl"
        assert convert([str(tmp_path / name)], to, engine=LocalEngine(1)) == 0
        assert len(list((to.parent / "plain_images").iterdir())) == files, "each once"
        moved = tmp_path / f"moved {name}"
        to.parent.rename(moved)
        assert_same(
            load(tmp_path / name, encoder, tmp_path / "cache"), load(moved / to.name, encoder, tmp_path / "cache")
        )


def test_what_is_refused_is_shown_and_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"query": "<image>Old?", "response": "No.", "image": "a.jpg"}
    data = folder / "mixed.json"
    bad = [{**good, "image": "gone.jpg"}, {**good, "image": None}, 5, {**good, "tools": ["x"]}]
    data.write_text(json.dumps([good, *bad, {**good, "query": "<image>Last?"}], indent=1), encoding="utf-8")
    to = tmp_path / "plain.jsonl"
    code, printed = said(capsys, "convert", data, "--to", to)
    assert code == 1
    assert "image-missing" in printed
    assert "marker-count" in printed
    assert f"wrote 2 samples with 2 images to {to}; left out 4" in printed
    assert [json.loads(line)["messages"][0]["content"] for line in to.read_text().splitlines()] == [
        "<image>Old?",
        "<image>Last?",
    ]


def test_names_of_images_are_relative_where_they_lie_below(folder: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("none", "[1].png", "data:x.png", "file:y.png", "set/ü 1.png")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((folder / "c.png").read_bytes())
        data = folder / f"names {number}.jsonl"
        record = {"query": "<image>Old?", "response": "No.", "images": [{"path": f"{folder}/{name}"}]}
        data.write_text(json.dumps(record), encoding="utf-8")
        for to in (folder / "plain.jsonl", tmp_path / "plain.jsonl"):
            assert convert([str(data)], to, engine=LocalEngine(1)) == 0
            (found,) = json.loads(to.read_text(encoding="utf-8"))["images"]
            relative = to.parent == folder and name == "set/ü 1.png"
            assert found == (name if relative else f"{folder}/{name}"), name
            assert convert([str(to)], tmp_path / "again.jsonl", engine=LocalEngine(1)) == 0, name


def test_what_cannot_be_written_says_why(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder / "one.jsonl"
    data.write_text(json.dumps({"query": "<image>Old?", "response": "No.", "image": "a.jpg"}), encoding="utf-8")
    wrong = {
        str(tmp_path / "plain.json"): "name it plain.jsonl",
        str(data): "is a data file",
        f"{data}/plain.jsonl": "cannot write",
    }
    for to, expected in wrong.items():
        code, printed = said(capsys, "convert", data, "--to", to)
        assert code == 1, to
        assert expected in printed, printed
    with pytest.raises(ConfigError, match="no data file matches"):
        convert([str(tmp_path / "gone.jsonl")], tmp_path / "plain.jsonl")
    assert not (tmp_path / "plain.jsonl").exists()


def odd_images(folder: Path) -> list[str]:
    """Images that programs read in different ways."""
    plain = tiny.image(60, 90)
    clear = plain.convert("RGBA")
    clear.putalpha(tiny.image(60, 90, mode="L", seed=1))
    deep = Image.fromarray((np.arange(60 * 90).reshape(60, 90) % 4096).astype(np.uint16))
    turned, mirrored = Image.Exif(), Image.Exif()
    turned[274], mirrored[274] = 6, 2
    plain.save(folder / "plain.jpg")
    plain.save(folder / "turned.jpg", exif=turned)
    plain.save(folder / "mirrored.webp", exif=mirrored, lossless=True)
    clear.save(folder / "clear.png")
    clear.convert("LA").save(folder / "grey.png")
    plain.convert("P").save(folder / "palette.png", transparency=3)
    deep.save(folder / "deep.png")
    deep.save(folder / "deep.tif")
    Image.fromarray(np.asarray(deep) / np.float32(4096)).save(folder / "fractions.tif")
    plain.convert("CMYK").save(folder / "inks.jpg")
    plain.save(folder / "frames.gif", save_all=True, append_images=[tiny.image(60, 90, seed=2)])
    return sorted(path.name for path in folder.iterdir())


def test_images_are_written_such_that_every_program_reads_them_alike(
    tmp_path: Path, encoder: Encoder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    names = odd_images(folder)
    record = {"query": "<image>" * len(names), "response": "No.", "images": names}
    (folder / "data.jsonl").write_text(json.dumps(record), encoding="utf-8")
    to = tmp_path / "out" / "plain.jsonl"
    code, printed = said(capsys, "convert", folder / "data.jsonl", "--to", to, "--images", to.parent / "images")
    assert code == 0, printed
    assert f"{len(names) - 1} image files to {to.parent / 'images'}" in printed, "two hold the same"
    before, after = load(folder / "data.jsonl", encoder, tmp_path / "c"), load(to, encoder, tmp_path / "c")
    assert np.array_equal(before.layout(0).input_ids, after.layout(0).input_ids)
    for name, one, two in zip(names, before.images(0), after.images(0), strict=True):
        assert two.name.startswith("images/"), "relative, so that the folder can be moved"
        with Image.open(two.location) as image:
            assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(load_rgb(one.location))), name
        kept = (folder / name).read_bytes() == Path(two.location).read_bytes()
        assert kept == (name == "plain.jpg"), "what everyone reads alike stays as it is"
        size, resized = (one.height, one.width), (one.resized_height, one.resized_width)
        patches = [load_patches(item.location, size, resized, encoder.geometry) for item in (one, two)]
        assert np.array_equal(*patches), name
    assert "Of the data, 3 images with grey of more than 8 bits" in image_notes([before])[0]
    assert image_notes([after]) == []


def test_check_counts_the_images_that_servers_read_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = odd_images(tmp_path)
    data = tmp_path / "data.jsonl"
    records = [{"query": "<image>", "response": "No.", "image": name} for name in [*names, "deep.png"]]
    data.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    code, printed = said(capsys, "check", data)
    assert code == 0
    assert "3 images with grey of more than 8 bits" in printed
    assert "3 images with transparency" in printed
    assert "2 images turned by EXIF" in printed
    assert "triptych convert --images DIR" in printed
    _, printed = said(capsys, "check", data, "--json")
    assert json.loads(printed[printed.index("{") :])["images"] == {"turned": 2, "alpha": 3, "deep_grey": 3}
    data.write_text(json.dumps(records[names.index("plain.jpg")]), encoding="utf-8")
    assert "servers" not in said(capsys, "check", data)[1]
