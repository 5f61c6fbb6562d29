"""Limits where they are asked for: of a source, of one image, of the run; the narrower place decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from equivalence import oracle
from test_train import losses, run
from triptych.api.data import load_run
from triptych.commands.convert import convert
from triptych.errors import ConfigError, Origin, SampleError
from triptych.exporting.serving.notes import source_notes
from triptych.run.prepare import prepare
from triptych.run.run_file import load
from triptych.sources.records import Record, Source
from triptych.terminal import Terminal
from triptych.text.conversation import parse

RUN = {"min_pixels": 3136, "max_pixels": 50176}
SIZE = (300, 420)
"""(height, width) of every image"""


def part(**asked: int) -> dict[str, Any]:
    return {"type": "image", **asked}


ASKED: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "run": (part(), (RUN["min_pixels"], RUN["max_pixels"])),
    "lower": (part(max_pixels=12544), (RUN["min_pixels"], 12544)),
    "higher": (part(max_pixels=200704), (RUN["min_pixels"], 200704)),
    "grown": (part(min_pixels=160000), (160000, 160000)),
    "both": (part(min_pixels=20000, max_pixels=30000), (20000, 30000)),
    "below the run's least": (part(max_pixels=1568), (1568, 1568)),
}


def record(*parts: dict[str, Any]) -> dict[str, Any]:
    """A record of image parts; each image stands in `images`, or in its part."""
    question = {"role": "user", "content": [*parts, {"type": "text", "text": "Which?"}]}
    images = ["a.png" for item in parts if "image" not in item]
    return {"messages": [question, {"role": "assistant", "content": "This."}], "images": images}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("limits")
    tiny.write_model(folder / "model", min_pixels=1568, max_pixels=28 * 28 * 1280)
    tiny.write_image(folder / "a.png", *SIZE, seed=1)
    return folder


def grids(folder: Path, records: list[dict[str, Any]], *overrides: str, **source: Any) -> list[list[list[int]]]:
    (folder / "data.json").write_text(json.dumps(records))
    data = {"train": [{"path": str(folder / "data.json"), **source}], **RUN}
    path = tiny.write_run(folder, folder / "model", folder / "data.json", data=data)
    changed = dict(item.split("=", 1) for item in overrides)
    samples = load_run(path, {key: json.loads(value) for key, value in changed.items()}).samples()
    lengths = [len(sample.input_ids) for sample in samples]
    assert lengths == samples.lengths.tolist(), "lengths of the plan are those of the layout"
    return [sample.image_grid_thw.tolist() for sample in samples]


def expected(limits: tuple[int, int], size: tuple[int, int] = SIZE) -> list[int]:
    """The grid that transformers' own processor gives under these limits."""
    image = tiny.image(*size)
    found = oracle.processor(*limits)(images=[image], return_tensors="np")["image_grid_thw"][0]
    return [int(value) for value in found]


def test_each_image_has_the_grid_of_transformers_under_its_limits(folder: Path) -> None:
    parts = [asked for asked, _ in ASKED.values()]
    (found,) = grids(folder, [record(*parts)])
    for name, grid, (_, limits) in zip(ASKED, found, ASKED.values(), strict=True):
        assert grid == expected(limits), name
    inline = [{**asked, "image": "a.png"} for asked in parts]
    assert grids(folder, [record(*inline)]) == [found], "named in the part"
    floats = [
        {key: float(value) if isinstance(value, int) else value for key, value in asked.items()} for asked in parts
    ]
    assert grids(folder, [record(*floats)]) == [found], "whole numbers, as tables with nulls write them"
    assert grids(folder, [record(*parts[:2])] * 2 + [record(parts[0])]) == [found[:2], found[:2], found[:1]]


def test_a_size_that_is_given_is_rounded_to_tokens(folder: Path) -> None:
    given = part(resized_height=100, resized_width=290)
    large = part(resized_height=1000, resized_width=1400, max_pixels=3136)
    (found,) = grids(folder, [record(given, large)])
    assert found[0] == expected((3136, 28 * 28 * 16384), (100, 290)) == [1, 8, 20]
    assert found[1] == expected((3136, 28 * 28 * 16384), (1000, 1400))
    samples = load_run(folder / "run.yaml").samples()
    assert samples[0].pixel_values().shape[0] == int(samples[0].image_grid_thw.prod(-1).sum())


def test_limits_of_a_source_and_of_a_part_within_it(folder: Path) -> None:
    parts = [part(), part(max_pixels=30000)]
    (found,) = grids(folder, [record(*parts)], max_pixels=12544)
    assert found == [expected((3136, 12544)), expected((3136, 30000))]
    (found,) = grids(folder, [record(part())], min_pixels=100000, max_pixels=150000)
    assert found == [expected((100000, 150000))]
    with pytest.raises(ConfigError, match="`min_pixels` is larger than `max_pixels`"):
        grids(folder, [record(part())], min_pixels=2, max_pixels=1)


def test_the_budget_of_a_sample_holds_for_all_of_them(folder: Path) -> None:
    parts = [part(), part(max_pixels=200704), part(resized_height=600, resized_width=600), part(min_pixels=40000)]
    (found,) = grids(folder, [record(*parts)], "data.sample_image_tokens=120")
    tokens = [height * width // 4 for _, height, width in found]
    assert 100 < sum(tokens) <= 120
    assert tokens[3] * 28 * 28 >= 40000, "none below its own least"


def test_two_sources_of_one_image(folder: Path, tmp_path: Path) -> None:
    """The same file at two sizes: through the plan, kept features and training."""
    for name in ("one.json", "two.json"):
        (folder / name).write_text(json.dumps([record(part())] * 2))
    one, two = ({"path": str(folder / name)} for name in ("one.json", "two.json"))
    data = {"train": [{**one, "max_pixels": 6272}, two], "eval": [{**two, "max_pixels": 12544}], "min_pixels": 784}
    settings = {"data": {**data, "max_pixels": 25088}, "model": {"freeze": ["vision", "merger"]}}
    path = tiny.write_run(tmp_path, folder / "model", folder / "one.json", **settings)
    prepared = prepare(load(path), ("train", "eval"), Terminal())
    sizes = [prepared.corpora["train"].layout(index).grids[0].tolist() for index in range(4)]
    assert sizes == [expected((784, 6272))] * 2 + [expected((784, 25088))] * 2
    assert prepared.corpora["eval"].layout(0).grids[0].tolist() == expected((784, 12544))
    whole = losses(run(path, "train.feature_cache=off", f"output={tmp_path / 'off'}"))
    kept = losses(run(path, "train.feature_cache=on", f"output={tmp_path / 'on'}"))
    assert kept == pytest.approx(whole, rel=2e-2)
    (note,) = source_notes(load(path).sources("train"), prepared.encoder.geometry)
    assert "Images of one.json had limits of their own in training (784 to 6,272 px)" in note


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"max_pixels": 0}, "no number of pixels"),
        ({"max_pixels": "50176"}, "no number of pixels"),
        ({"max_pixels": 501.5}, "no number of pixels"),
        ({"resized_height": 28}, "give both"),
        ({"min_pixels": 5000, "max_pixels": 4000}, "over its `max_pixels`"),
        ({"resized_height": 28, "resized_width": 28 * 201}, "one side over 200 times"),
        ({"total_pixels": 5000}, "`total_pixels`"),
    ],
)
def test_what_cannot_be_asked_is_said(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(SampleError) as caught:
        parse(Record(record(part(**asked)), Origin("data.json", 1)), Source("data.json"))
    assert words in caught.value.problems[0].message


def test_converted_records_ask_the_same(folder: Path, tmp_path: Path) -> None:
    parts = [asked for asked, _ in ASKED.values()]
    before = grids(folder, [record(*parts, part(resized_height=100, resized_width=290)), record(part())])
    assert convert([str(folder / "data.json")], tmp_path / "plain.jsonl") == 0
    lines = [json.loads(line) for line in (tmp_path / "plain.jsonl").read_text().splitlines()]
    for line in lines:
        line["images"] = [str(folder / "a.png")] * len(line["images"])
    assert grids(folder, lines) == before
    assert np.array(before[1]).shape == (1, 3)
