"""Answers over the steps of a run in its trackers: what a tracker shows is what the report shows."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from triptych.reports.answers import ShownAnswer
from triptych.terminal import Terminal
from triptych.training.watch.answer_tables import GAP, AnswerTables, Row, question, strip, tracker_tables


def thumb(color: str, size: tuple[int, int]) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, format="PNG")
    return {"name": f"{color}.png", "thumb": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()}


CARDS = [
    {
        "origin": "train.json:1",
        "turns": [
            {"role": "system", "parts": [{"s": "<|im_start|>system\n", "m": 1}, {"s": "Be brief."}]},
            {"role": "user", "parts": [{"i": 0}, {"s": " against "}, {"i": 1}, {"s": "?"}]},
        ],
        "images": [thumb("red", (20, 10)), thumb("blue", (30, 40))],
        "reference": "the | first\nof two",
    },
    {
        "origin": "train.json:2",
        "turns": [{"role": "user", "parts": [{"s": "<b>Hello</b>"}]}],
        "images": [{"name": "lost.png", "error": "cannot be decoded"}],
        "reference": "yes",
    },
]
ANSWERS = [ShownAnswer("a `tick`", right=False, finished=True), ShownAnswer("yes", right=True, finished=True)]


def test_questions_name_images_at_their_places_and_strips_hold_them_in_order() -> None:
    assert question(CARDS[0]) == "system: Be brief.\nuser: [image 1] against [image 2]?"
    assert question(CARDS[1]) == "<b>Hello</b>"
    joined = strip(CARDS[0]["images"])
    assert joined is not None
    assert joined.size == (50 + GAP, 40)
    colors = [joined.getpixel(place) for place in ((10, 5), (10, 30), (40, 30))]
    assert colors == [(255, 0, 0), (255, 255, 255), (0, 0, 255)]
    assert strip(CARDS[1]["images"]) is None


def test_tensorboard_holds_a_table_for_each_step_and_each_sample_s_images_once(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path))  # type: ignore[no-untyped-call]
    shown = AnswerTables(CARDS, tracker_tables([], writer, images=False), Terminal())
    for step in (0, 5):
        shown.show(step, ANSWERS)
    found = events.EventAccumulator(str(tmp_path)).Reload()
    tables = found.Tensors("answers/text_summary")
    assert [event.step for event in tables] == [0, 5]
    text = tables[0].tensor_proto.string_val[0].decode()
    assert text.splitlines()[2] == (
        "| train.json:1 | system: Be brief.<br>user: [image 1] against [image 2]? "
        "| the &#124; first<br>of two | a &#96;tick&#96; | no |"
    )
    assert "&lt;b>Hello&lt;/b>" in text, "text, no markup"
    assert found.Tags()["images"] == ["answers/train.json:1"]
    assert len(found.Images("answers/train.json:1")) == 1


def test_a_table_that_fails_is_said_once_and_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[tuple[int, list[Row]]] = []

    def fails(_step: int, _found: Any) -> None:
        raise OSError("no network")

    shown = AnswerTables(
        CARDS, {"far": fails, "near": lambda step, found: rows.append((step, list(found)))}, Terminal()
    )
    for step in (0, 5):
        shown.show(step, ANSWERS)
    said = capsys.readouterr().err
    assert said.count("no more answers in far (OSError: no network); far itself goes on") == 1
    assert [(step, [row.answer for row in found]) for step, found in rows] == [
        (step, ["a `tick`", "yes"]) for step in (0, 5)
    ]


def test_weights_and_biases_takes_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "artifacts"))
    run = wandb.init(mode="offline", dir=tmp_path, project="tables")
    try:
        for images in (True, False):
            shown = AnswerTables(CARDS, tracker_tables(["wandb", "clearml"], None, images=images), Terminal())
            shown.show(3, ANSWERS)
        staged = [path.read_bytes() for path in (tmp_path / "artifacts").rglob("*") if path.is_file()]
    finally:
        run.finish()
    tables = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("answers_*.table.json"))]
    assert len(tables) == 2
    for table in tables:
        assert table["columns"] == ["sample", "question", "images", "expected", "answer", "right"]
        assert [row[4:] for row in table["data"]] == [["a `tick`", False], ["yes", True]]
    written = [json.loads(found) for found in staged if found.startswith(b'{"_type": "table"')]
    kinds = {tuple((row[2] or {}).get("_type") for row in table["data"]) for table in written}
    assert kinds == {("image-file", None), (None, None)}, "images only where they were asked for"
