"""Boxes beside the text: written as the family writes them, and right in the resized image under every budget."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tokenizers import AddedToken

import tiny
from families import FAMILIES
from triptych.api.data import Sample, Samples, check, load_run
from triptych.commands.convert import convert
from triptych.errors import DataError, Origin, Problem, SampleError
from triptych.family.family import read_model_files
from triptych.run.prepare import prepare
from triptych.run.run_file import load
from triptych.sources.records import Record, Source
from triptych.terminal import Terminal
from triptych.text.boxes import Box
from triptych.text.conversation import Conversation, parse

SIZES = ((300, 500), (411, 200), (90, 130))
"""(height, width) of the images"""
RECTANGLES = ((120, 60, 391, 247), (13, 222, 150, 398), (30, 20, 99, 71))
"""x1, y1, x2, y2 of what is drawn in each, the last two excluded"""


def record(question: str, answer: str, objects: Any, images: int = 3) -> dict[str, Any]:
    turns = [{"role": "user", "content": "<image>" * images + question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "images": [f"{number}.png" for number in range(images)], "objects": objects}


def read(data: dict[str, Any], **source: Any) -> Conversation:
    return parse(Record(data, Origin("data.json", 1)), Source("data.json", **source))


def problems(data: dict[str, Any], **source: Any) -> list[Problem]:
    with pytest.raises(SampleError) as caught:
        read(data, **source)
    return list(caught.value.problems)


BOXES = [list(rectangle) for rectangle in RECTANGLES]
OBJECTS = {"ref": ["the sheep", "cat"], "bbox": BOXES, "image_id": [0, 1, 2]}
FULL = record("Find <ref-object>, <ref-object>.", "At <bbox>, <bbox> and\n<bbox>", OBJECTS)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (record("Where?", "<bbox>", {"bbox": BOXES, "image_id": [0, 1, 2]}), "1 <bbox> marks in the text but 3 under"),
        (record("A?", "<bbox>", {**OBJECTS, "bbox": BOXES[:1], "image_id": [0]}), "0 <ref-object> marks in the text"),
        (record("Where?", "<bbox>", {"bbox": BOXES[:1]}), "no `image_id`, and the record 3 images"),
        (
            record("Where?", "<bbox>", {"bbox": BOXES[:1], "image_id": [3]}),
            "of image 3, counted from 0",
        ),
        (record("Where?", "<bbox>", {"bbox": BOXES[:1], "image_id": [True]}), "`image_id`"),
        (record("Where?", "<bbox>", {"bbox": BOXES[:1], "image_id": [0, 1]}), "under `image_id`; give each box one"),
        (record("Where?", "<bbox>", {"bbox": [[1, 2, 3]], "image_id": [0]}), "a box is [x1, y1, x2, y2], a point"),
        (record("Where?", "<bbox>", {"bbox": [[9, 9, 3, 4]], "image_id": [0]}), "x, y, width and height"),
        (record("Where?", "<bbox>", {"bbox": [[1, "2", 3, 4]], "image_id": [0]}), "one of them is a string"),
        (record("Where?", "<bbox>", {"bbox": BOXES[:1], "area": [3]}), "`objects` holds `area`"),
        (record("Where?", "<bbox>", {"bbox": BOXES[:1], "bbox_type": "xywh"}), "`bbox_type` of `objects`"),
        (record("Where?", "<bbox>", ["box"]), "`objects` is {ref, bbox, image_id, bbox_type}, this is a list"),
        (record("Where\U000f0000?", "<bbox>", {"bbox": BOXES[:1], "image_id": [0]}), "characters of private use"),
        (record("Where?", "There", {"bbox": BOXES[:1]}, images=0), "is of image 0, counted from 0"),
    ],
)
def test_what_is_no_box_is_said(data: dict[str, Any], words: str) -> None:
    (problem, *_) = problems(data)
    assert words in problem.message
    assert problem.code in ("bad-shape", "marker-count")


def test_objects_may_be_left_out_or_empty() -> None:
    plain = record("Where?", "There", None)
    assert read(record("Where?", "There", {"bbox": BOXES}), ignore=["objects"]).turns == read(plain).turns
    assert read(record("Where?", "There", {"ref": [], "bbox": []})).objects == ()
    as_parts = record("", "", OBJECTS)
    text = "At <bbox>, <bbox>, <bbox>: <ref-object><ref-object>"
    as_parts["messages"][1]["content"] = [{"type": "text", "text": text}]
    assert sum(isinstance(item, Box) for item in read(as_parts).objects) == 3, "also in text parts"


def family_run(folder: Path, family: str) -> Path:
    tiny.write_model(folder / "model", family=family, max_pixels=600 * 600)
    for number, ((height, width), rectangle) in enumerate(zip(SIZES, RECTANGLES, strict=True)):
        image = Image.new("RGB", (width, height), "black")
        x1, y1, x2, y2 = rectangle
        ImageDraw.Draw(image).rectangle((x1, y1, x2 - 1, y2 - 1), "white")
        image.save(folder / f"{number}.png")
    long = record("Find <ref-object>, <ref-object>.", "At <bbox>, <bbox> and\n<bbox>" + " or not" * 30, OBJECTS)
    (folder / "data.json").write_text(json.dumps([FULL, long]))
    return tiny.write_run(folder, folder / "model", folder / "data.json")


@pytest.fixture(scope="module", params=FAMILIES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, family_run(tmp_path_factory.mktemp("boxes"), request.param)


def drawn(sample: Sample, number: int) -> tuple[int, int, int, int]:
    """The rectangle found in the pixels that the model gets of an image."""
    image = sample.images[number]
    grids = sample.image_grid_thw
    start = int(grids[:number].prod(-1).sum())
    _, rows, columns = grids[number].tolist()
    values = sample.pixel_values()[start : start + rows * columns]
    side = image.resized_height // rows
    patches = values.reshape(rows // 2, columns // 2, 2, 2, 3, 2, side, side)[:, :, :, :, 0, 0]
    light: NDArray[np.float32] = patches.transpose(0, 2, 4, 1, 3, 5).reshape(rows * side, columns * side)
    assert light.shape == (image.resized_height, image.resized_width)
    inside = light > (light.min() + light.max()) / 2
    ys, xs = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


def texts(sample: Sample) -> str:
    """The learned text, special tokens included."""
    ids = sample.labels[sample.labels >= 0].tolist()
    return str(sample._encoder.template.tokenizer.decode(ids, skip_special_tokens=False))


def text_of_longest(path: Path) -> int:
    """Tokens of the longest sample's text, where its images keep their size."""
    sample = load_run(path).samples()[1]
    return len(sample.input_ids) - int(sample.image_grid_thw.prod(-1).sum()) // 4


LIMITS: dict[str, list[str]] = {
    "natural": [],
    "max_pixels": ["data.max_pixels=40000"],
    "min_pixels": ["data.min_pixels=90000"],
    "sample_image_tokens": ["data.sample_image_tokens=60"],
    "shrink": ["data.max_tokens=TEXT+60"],
    "shrink more": ["data.max_tokens=TEXT+25"],
    "cut_text": ["data.max_tokens=TEXT-10", "data.too_long=cut_text"],
    "packed": ["batch={tokens: TEXT+60, patches: 300}"],
    "llamafactory": ["data.resize=llamafactory", "data.max_pixels=40000"],
}


@pytest.mark.parametrize("limit", LIMITS)
def test_a_box_is_where_it_is_drawn(run: tuple[str, Path], limit: str) -> None:
    family, path = run
    text_tokens = text_of_longest(path)
    overrides = [re.sub(r"TEXT([+-]\d+)", lambda m: str(text_tokens + int(m[1])), text) for text in LIMITS[limit]]
    settings = load(path, overrides)
    prepared = prepare(settings, ("train",), Terminal())
    found = Samples(prepared.corpora["train"], prepared.files, prepared.encoder)
    assert len(found) == 2
    marked, absolute = family == "qwen2_vl", family == "qwen2_5_vl"
    shrunk = False
    for sample in found:
        text = texts(sample)
        if marked:
            boxes = re.findall(r"<\|box_start\|>\((\d+),(\d+)\),\((\d+),(\d+)\)<\|box_end\|>", text)
        else:
            boxes = re.findall(r"\[(\d+), (\d+), (\d+), (\d+)\]", text)
        assert len(boxes) == 3, text
        for number, box in enumerate(boxes):
            numbers = tuple(map(int, box))
            image = sample.images[number]
            shrunk = shrunk or image.resized_height < image.height * 0.7
            if absolute:
                shown = drawn(sample, number)
                assert max(abs(a - b) for a, b in zip(numbers, shown, strict=True)) <= 1, (limit, number)
            else:
                sides = (image.width, image.height) * 2
                expected = [round(v / s * 1000) for v, s in zip(RECTANGLES[number], sides, strict=True)]
                assert max(abs(a - b) for a, b in zip(numbers, expected, strict=True)) <= 0.5 + 1e-9
        whole = sample._encoder.template.tokenizer.encode(text.partition("<|im_end|>")[0], add_special_tokens=False)
        learned = sample.labels[sample.labels >= 0].tolist()
        answer = learned[learned.index(whole.ids[0]) :]
        assert answer[: len(whole.ids)] == whole.ids, "the ids are those of the text as a whole"
    assert shrunk == (limit not in ("natural", "min_pixels")), "the limit binds"
    lengths = found.corpus.lengths
    assert [len(sample.input_ids) for sample in found] == lengths.tokens.tolist()
    budget = prepared.encoder.budget
    assert budget.max_tokens is None or lengths.tokens.max() <= budget.max_tokens


def test_names_and_boxes_as_each_family_writes_them(run: tuple[str, Path]) -> None:
    family, path = run
    sample = load_run(path).samples()[0]
    text = sample._encoder.template.tokenizer.decode(sample.input_ids.tolist(), skip_special_tokens=False)
    sheep = "<|object_ref_start|>the sheep<|object_ref_end|>" if family == "qwen2_vl" else "the sheep"
    assert f"Find {sheep}, " in text
    x1, y1, x2, y2 = (round(v / s * 1000) for v, s in zip(RECTANGLES[0], (500, 300) * 2, strict=True))
    if family == "qwen2_vl":
        assert f"At <|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>, <|box" in text
    elif family != "qwen2_5_vl":
        assert f"At [{x1}, {y1}, {x2}, {y2}], [" in text


def test_fractions_points_and_polygons(tmp_path: Path) -> None:
    family_run(tmp_path, "qwen2_vl")
    shapes = [[0.1, 0.25], [0, 0, 1, 1], [0, 0, 0.5, 0, 0.5, 1]]
    objects = {"bbox": shapes, "image_id": [0, 1, 2], "bbox_type": "norm1"}
    (tmp_path / "data.json").write_text(json.dumps([record("Where?", "<bbox> <bbox> <bbox>", objects)]))
    text = texts(load_run(tmp_path / "run.yaml").samples()[0])
    shown = [points.replace("<|box_start|>", "") for points in text.split("<|box_end|>")[:3]]
    assert shown == ["(100,250)", " (0,0),(1000,1000)", " (0,0),(500,0),(500,1000)"]


def test_a_box_outside_of_its_image_is_a_problem(tmp_path: Path) -> None:
    path = family_run(tmp_path, "qwen2_5_vl")
    wide = record("Where?", "<bbox>", {"bbox": [[1, 2, 501, 300]], "image_id": [0]})
    deep = record("Where?", "<bbox>", {"bbox": [[1, 2, 130, 130]], "image_id": [2]})
    edge = record("Where?", "<bbox>", {"bbox": [[0, 0, 500, 300]], "image_id": [0]})
    beyond = record("Where?", "<bbox>", {"bbox": [[0, 0, 1, 1.2]], "image_id": [1], "bbox_type": "norm1"})
    (tmp_path / "data.json").write_text(json.dumps([wide, edge, deep, beyond]))
    for report in (check(Source(str(tmp_path / "data.json"))), check(load_run(path))):
        assert [(problem.code, problem.origin.line, problem.image) for problem in report.problems] == [
            ("box-outside", 1, 1), ("box-outside", 3, 3), ("box-outside", 4, 2)
        ]  # fmt: skip
        assert "x = 501, which is outside of 0 to the image's width of 500 px" in report.problems[0].message
    with pytest.raises(DataError, match="box-outside"):
        prepare(load(path), ("train",), Terminal())


def test_converted_boxes_are_the_same_boxes(tmp_path: Path) -> None:
    path = family_run(tmp_path, "qwen2_5_vl")
    before = [texts(sample) for sample in load_run(path).samples()]
    assert convert([str(tmp_path / "data.json")], tmp_path / "plain.jsonl") == 0
    after = tiny.write_run(tmp_path, tmp_path / "model", tmp_path / "plain.jsonl")
    assert [texts(sample) for sample in load_run(after).samples()] == before


def test_a_tokenizer_that_joins_digits_is_refused_by_name(tmp_path: Path) -> None:
    template = read_model_files(str(tiny.write_model(tmp_path / "model"))).template()
    conversation = read(FULL)
    assert template.refusal(conversation) is None
    template.tokenizer.add_tokens([AddedToken("16")])
    refusal = template.refusal(conversation)
    assert refusal is not None
    assert "joins digits" in refusal[1]
