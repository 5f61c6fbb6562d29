"""``triptych encode``: one line per accepted sample, in input order, exactly what the model will see."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

import tiny
from triptych.cli import app
from triptych.errors import ConfigError, ModelError

FIELDS = ["origin", "input_ids", "labels", "position_ids", "image_grid_thw", "images"]
IMAGE_FIELDS = ["path", "height", "width", "resized_height", "resized_width"]
SAMPLES = 8


def encode(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["encode", *map(str, arguments)])


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def records(path: Path) -> list[Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tiny.write_dataset(tmp_path, SAMPLES - 2)
    names = [str(tiny.write_image(tmp_path / f"{number}.png", 60, 80).name) for number in range(3)]
    more = [tiny.record([], "hi", "yes"), tiny.record(names, "<image>" * 3, "yes")]
    path.write_text(json.dumps(records(path) + more), encoding="utf-8")
    return path


@pytest.fixture
def mixed(data: Path) -> Path:
    """Good records with a bad one before, between and after them."""
    good = records(data)
    bad = [tiny.record(["gone.png"], "<image>", "yes"), 5, tiny.record([], "hi", "")]
    data.write_text(json.dumps([bad[0], *good[:4], bad[1], *good[4:], bad[2]]), encoding="utf-8")
    return data


def test_a_line_holds_exactly_the_documented_fields(data: Path, model_dir: Path) -> None:
    result = encode(data, "--model", model_dir)
    assert result.exit_code == 0
    assert result.stderr == ""
    written = lines(result.stdout)
    assert [line["origin"] for line in written] == [f"{data}:{number}" for number in range(1, SAMPLES + 1)]
    assert any(not line["images"] for line in written), "a text-only sample among them"
    assert any(len(line["images"]) > 2 for line in written)
    pad = next(token["id"] for token in added_tokens(model_dir) if token["content"] == "<|image_pad|>")
    for line, record in zip(written, records(data), strict=True):
        assert list(line) == FIELDS
        length = len(line["input_ids"])
        assert len(line["labels"]) == length
        assert [len(row) for row in line["position_ids"]] == [length] * 3
        pairs = list(zip(line["labels"], line["input_ids"], strict=True))
        assert all(label in (-100, token) for label, token in pairs), "labels are not shifted"
        assert any(label != -100 for label, _ in pairs)
        assert [image["path"] for image in line["images"]] == record["images"]
        for image, grid in zip(line["images"], line["image_grid_thw"], strict=True):
            assert list(image) == IMAGE_FIELDS
            assert grid == [1, image["resized_height"] // 14, image["resized_width"] // 14]
        tokens = sum(t * h * w // 4 for t, h, w in line["image_grid_thw"])
        assert line["input_ids"].count(pad) == tokens
        numbers = [line["input_ids"], line["labels"], *line["position_ids"]]
        assert all(type(value) is int for row in numbers for value in row)


def added_tokens(model_dir: Path) -> list[dict[str, Any]]:
    return json.loads((model_dir / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]


def test_sizes_are_given_as_the_image_is_seen(tmp_path: Path, model_dir: Path) -> None:
    tiny.write_image(tmp_path / "a.png", 300, 440)
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps(tiny.record(["a.png"], "<image>?", "yes")))
    (line,) = lines(encode(data, "--model", model_dir).stdout)
    sizes = {"height": 300, "width": 440, "resized_height": 308, "resized_width": 448}
    assert line["images"] == [{"path": "a.png", **sizes}]
    (small,) = lines(encode(data, "--model", model_dir, "--max-pixels", 100 * 100).stdout)
    assert small["image_grid_thw"] == [[1, 4, 8]]
    (large,) = lines(encode(data, "--model", model_dir, "--min-pixels", 500 * 500).stdout)
    assert np.prod(large["image_grid_thw"]) * 14**2 >= 500 * 500


def test_rejected_samples_are_told_as_check_tells_them(mixed: Path, model_dir: Path) -> None:
    result = encode(mixed, "--model", model_dir)
    assert result.exit_code == 1
    bad = (1, 6, SAMPLES + 3)
    accepted = [number for number in range(1, SAMPLES + 4) if number not in bad]
    assert [line["origin"] for line in lines(result.stdout)] == [f"{mixed}:{number}" for number in accepted]
    checked = CliRunner().invoke(app, ["check", str(mixed)])
    told = result.stderr.splitlines()
    assert len(told) == 3
    assert told == [line for line in checked.stderr.splitlines() if line.startswith(str(mixed))]


def test_a_file_gets_what_the_terminal_gets(mixed: Path, model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    result = encode(mixed, "--model", model_dir, "--out", out)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert out.read_text(encoding="utf-8") == encode(mixed, "--model", model_dir).stdout


def test_several_files_follow_each_other(data: Path, model_dir: Path, tmp_path: Path) -> None:
    more = tiny.write_dataset(tmp_path, 2, seed=5, name="more.json")
    written = lines(encode(more, data, "--model", model_dir).stdout)
    assert [line["origin"].rpartition("/")[2] for line in written][:3] == ["more.json:1", "more.json:2", "train.json:1"]
    assert len(written) == SAMPLES + 2


def test_the_media_folder_can_be_named(data: Path, model_dir: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = elsewhere / "data.json"
    moved.write_bytes(data.read_bytes())
    assert encode(moved, "--model", model_dir).exit_code == 1
    assert encode(moved, "--model", model_dir, "--media-dir", tmp_path).exit_code == 0


def test_pixels_are_stored_for_each_accepted_sample(mixed: Path, model_dir: Path, tmp_path: Path) -> None:
    store = tmp_path / "pixels.npz"
    result = encode(mixed, "--model", model_dir, "--pixels", store)
    written = lines(result.stdout)
    assert len(written) == SAMPLES
    assert any(not line["images"] for line in written), "a text-only sample among them"
    with np.load(store) as arrays:
        assert sorted(arrays.files) == sorted(f"pixel_values_{number}" for number in range(len(written)))
        for number, line in enumerate(written):
            values = arrays[f"pixel_values_{number}"]
            assert values.dtype == np.float32
            assert values.shape == (sum(int(np.prod(grid)) for grid in line["image_grid_thw"]), 3 * 2 * 14 * 14)
            if len(values):
                assert -3 < values.min() < values.max() < 3


def test_an_image_that_does_not_decode_rejects_its_sample(data: Path, model_dir: Path, tmp_path: Path) -> None:
    found = records(data)
    number, name = next((n, record["images"][0]) for n, record in enumerate(found, 1) if record["images"])
    content = bytearray((tmp_path / name).read_bytes())
    middle = content.index(b"IDAT") + 20
    content[middle : middle + 40] = bytes(40)  # the header and the end stay whole
    (tmp_path / name).write_bytes(content)
    assert encode(data, "--model", model_dir).exit_code == 0
    result = encode(data, "--model", model_dir, "--pixels", tmp_path / "pixels.npz")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"{data}:{number}, image 1: image-unreadable: ")
    with np.load(tmp_path / "pixels.npz") as arrays:
        assert len(arrays.files) == len(lines(result.stdout)) == SAMPLES - 1


def test_outputs_never_replace_the_data(data: Path, model_dir: Path, tmp_path: Path) -> None:
    before = data.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(data)
    for option in ("--out", "--pixels"):
        for path in (data, tmp_path / "link.jsonl"):
            assert isinstance(encode(data, "--model", model_dir, option, path).exception, ConfigError)
    assert data.read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["--out", "{folder}/no/such/folder.jsonl"],
        ["--out", "{folder}"],
        ["--pixels", "{folder}/no/such/folder.npz"],
        ["--min-pixels", "5000", "--max-pixels", "4000"],
        ["--max-pixels", "1000"],
        ["{folder}/gone.json"],
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    data: Path, model_dir: Path, tmp_path: Path, arguments: list[str]
) -> None:
    result = encode(data, "--model", model_dir, *(argument.format(folder=tmp_path) for argument in arguments))
    assert isinstance(result.exception, ConfigError)
    assert result.stdout == ""


@pytest.mark.parametrize("limit", [["--max-pixels", "0"], ["--min-pixels", "-1"], ["--max-pixels", "x"]])
def test_a_limit_is_a_positive_number(data: Path, model_dir: Path, limit: list[str]) -> None:
    assert encode(data, "--model", model_dir, *limit).exit_code == 2


def test_a_folder_without_a_model_is_refused(data: Path, tmp_path: Path) -> None:
    assert isinstance(encode(data, "--model", tmp_path).exception, ModelError)
    assert encode(data).exit_code == 2
