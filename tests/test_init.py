"""``triptych init``: whatever the data is called, the run file it writes passes ``plan`` unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import tiny
from triptych.commands.plan import PlanOptions, plan
from triptych.errors import ConfigError
from triptych.first_run.examples import example_texts, examples
from triptych.first_run.init import InitOptions, init
from triptych.first_run.survey import held_out, survey
from triptych.run.run_file import load

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

QUESTION, ANSWER = "<image><image>Which one is red?", "The first."


def openai(images: list[str]) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}],
        "images": images,
    }


def parts(images: list[str]) -> dict[str, Any]:
    content = [{"type": "image", "image": name} for name in images] + [{"type": "text", "text": "Which?"}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": ANSWER}]}


def llava(images: list[str]) -> dict[str, Any]:
    record = tiny.record(images, QUESTION, ANSWER)
    return {"image": record["images"], "conversations": record["conversations"]}


def renamed(images: list[str]) -> dict[str, Any]:
    turns = [{"speaker": "Human", "text": QUESTION}, {"speaker": "Bot", "text": ANSWER}]
    return {"dialog": turns, "photos": images}


SHAPES = {
    "sharegpt": lambda images: tiny.record(images, QUESTION, ANSWER),
    "openai": openai,
    "parts": parts,
    "llava": llava,
    "renamed": renamed,
}


def write_data(folder: Path, shape: str, *, images: str = "photos", samples: int = 12) -> Path:
    """A data set of one shape, its images in another folder than the data."""
    records = []
    for number in range(samples):
        names = [f"{number}-{place}.png" for place in range(2)]
        for name in names:
            tiny.write_image(folder / images / name, 60, 80, seed=number)
        records.append(SHAPES[shape](names))
    path = folder / "data" / "train.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(records))
    return path


@pytest.mark.parametrize("shape", SHAPES)
def test_the_run_file_passes_plan_unchanged(
    shape: str, small_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data(tmp_path, shape)
    monkeypatch.chdir(tmp_path)
    assert init(["data/train.json"], InitOptions(model=str(small_model_dir), gpu="24GB")) == 0
    settings = load("run.yaml")
    assert settings.data.train[0].media_dir == "photos"
    assert settings.model.train == "lora"
    assert Path("run.schema.json").exists()
    plan(Path("run.yaml"), (), PlanOptions())
    monkeypatch.chdir("data")
    plan(Path("../run.yaml"), (), PlanOptions())


def pair(images: list[str], **more: Any) -> dict[str, Any]:
    return {"question": QUESTION, "answer": ANSWER, "images": images, **more}


def unmarked(images: list[str]) -> dict[str, Any]:
    return pair(images) | {"question": "Which one is red?"}


def cauldron(images: list[str]) -> dict[str, Any]:
    return {"images": images, "texts": [{"user": "Which one is red?", "assistant": ANSWER, "source": "made"}]}


def numbered(images: list[str]) -> dict[str, Any]:
    return {"image_0": images[0], "image_1": images[1], "question": "<image 1> or <image 2>?", "answer": ANSWER}


def two_columns(images: list[str]) -> dict[str, Any]:
    return {"left": images[0], "right": images[1], "question": "Which one is red?", "answer": ANSWER}


def own_mark(images: list[str]) -> dict[str, Any]:
    return pair(images) | {"question": "<ImageHere><ImageHere>Which one is red?"}


def bracketed(images: list[str]) -> dict[str, Any]:
    return pair(images) | {"question": "[image] or [image]?"}


def choice(images: list[str]) -> dict[str, Any]:
    return pair(images, options=["the first", "the second"]) | {"answer": "A"}


def in_a_row(images: list[str]) -> dict[str, Any]:
    turns = [("user", "<image><image>"), ("user", "Which one is red?"), ("assistant", ANSWER)]
    return {"messages": [{"role": role, "content": text} for role, text in turns], "images": images}


def quoted(images: list[str]) -> dict[str, Any]:
    """Advice in the data itself is not followed: it would make fewer records good, not more."""
    return pair(images) | {"question": f"{QUESTION} Write `marks: first` or `roles: merge`."}


ADVISED: dict[str, tuple[Any, dict[str, Any]]] = {
    "images without marks": (unmarked, {"marks": "auto"}),
    "the_cauldron": (cauldron, {"marks": "auto"}),
    "numbered columns and marks": (numbered, {"columns": {"images": "image_{n}"}, "mark": "<image {n}>"}),
    "a column for each image": (two_columns, {"columns": {"images": ["left", "right"]}, "marks": "auto"}),
    "another mark": (own_mark, {"mark": "<ImageHere>"}),
    "a mark in brackets": (bracketed, {"mark": "[image]"}),
    "multiple choice": (choice, {"choice": {}}),
    "two turns of one role": (in_a_row, {"roles": "merge"}),
    "advice inside the data": (quoted, {}),
}


@pytest.mark.parametrize("kind", ADVISED)
def test_what_messages_advise_is_tried_and_written(
    kind: str, small_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, wanted = ADVISED[kind]
    monkeypatch.setitem(SHAPES, kind, made)
    data = write_data(tmp_path, kind)
    run = tmp_path / "run.yaml"
    assert init([str(data)], InitOptions(model=str(small_model_dir), gpu="24GB", out=run)) == 0
    written = load(run).data.train[0].model_dump(exclude_defaults=True, exclude={"path", "media_dir"})
    assert written == wanted
    plan(run, (), PlanOptions())


def test_advice_that_helps_some_records_leaves_the_others_to_check(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    bad = [{"question": "Old?", "answer": ""}, {"question": "Old?", "answer": "No.", "rejected": "Yes."}]
    records = [pair(["a.png", "b.png"])] * 3 + [unmarked(["a.png", "b.png"])] * 4 + bad
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = survey([str(data)])
    assert (found.source.marks, found.good, found.records) == ("auto", 7, 9)
    assert {problem.origin.line for problem in found.problems} == {8, 9}


def test_names_of_ones_own_are_found(tmp_path: Path) -> None:
    found = survey([str(write_data(tmp_path, "renamed"))])
    assert found.source.columns == {"conversations": "dialog", "images": "photos"}
    assert found.source.tags == {"role": "speaker", "user": "Human", "assistant": "Bot", "content": "text"}
    assert (found.good, found.records, found.hit_rate) == (12, 12, 1.0)


def test_the_hit_rate_of_the_image_folder_is_said(
    small_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path, "openai")
    (tmp_path / "photos" / "3-1.png").unlink()
    assert init([str(data)], InitOptions(model=str(small_model_dir), gpu="24GB", out=tmp_path / "run.yaml")) == 1
    shown = capsys.readouterr().err
    assert "23 of 24 looked for are in " in shown
    assert "image-missing" in shown


def test_held_out_data_beside_the_data_is_taken(small_model_dir: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path, "sharegpt")
    assert held_out(str(data)) is None
    (data.parent / "val.json").write_text(data.read_text())
    assert held_out(str(data)) == str(data.parent / "val.json")
    init([str(data)], InitOptions(model=str(small_model_dir), gpu="24GB", out=tmp_path / "run.yaml"))
    assert load(tmp_path / "run.yaml").data.eval[0].path == str(tmp_path / "data" / "val.json")


def test_without_a_terminal_nothing_is_asked(tmp_path: Path) -> None:
    data = write_data(tmp_path, "openai")
    with pytest.raises(ConfigError, match="--model"):
        init([str(data)], InitOptions(out=tmp_path / "run.yaml"))


def test_a_run_file_is_not_overwritten(small_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("mine")
    with pytest.raises(ConfigError, match="--force"):
        init([str(write_data(tmp_path, "openai"))], InitOptions(model=str(small_model_dir), out=tmp_path / "run.yaml"))
    assert (tmp_path / "run.yaml").read_text() == "mine"


def test_data_of_no_known_shape_is_refused_with_its_keys(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"foo": 1}\n')
    with pytest.raises(ConfigError, match="`foo`"):
        survey([str(tmp_path / "x.jsonl")])


def test_the_examples_come_with_the_package(tmp_path: Path) -> None:
    examples(tmp_path / "mine")
    assert {path.name for path in (tmp_path / "mine").glob("*.yaml")} == set(example_texts())
    for path in (tmp_path / "mine").glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["output"]
    with pytest.raises(ConfigError, match="exists already"):
        examples(tmp_path / "mine")
