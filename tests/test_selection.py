"""Selection: what is held out shares no image with training, first samples, orders, step counts, system prompts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import tiny
from test_train import losses, run
from triptych.api.data import load_run
from triptych.errors import ConfigError
from triptych.run.prepare import Prepared, plan_training, prepare
from triptych.run.run_file import load
from triptych.run.selection import groups_by_image
from triptych.terminal import Terminal

SAMPLES = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data files of records of which 40% share images, some through others, some under another path."""
    folder = tmp_path_factory.mktemp("selection")
    tiny.write_model(folder / "model", max_pixels=84 * 84)
    for number in range(SAMPLES):
        tiny.write_image(folder / "images" / f"{number}.png", 40, 40, seed=number)
    records: list[list[dict[str, Any]]] = [[], []]
    for number in range(SAMPLES):
        images = [f"images/{number}.png"]
        if number % 5 in (1, 2):  # 1 with 0, and 2 with 1: a chain, across both files
            images.append(f"images/{number - 1}.png" if number % 3 else f"./images/../images/{number - 1}.png")
        marks = "<image>" * len(images)
        records[number % 2].append(tiny.record(images, f"{marks}Which digit is larger?", f"number {number}"))
    for name, items in zip(("one.json", "two.json"), records, strict=True):
        (folder / name).write_text(json.dumps(items))
    return folder


def run_over(folder: Path, **data: Any) -> Path:
    sources = [{"path": str(folder / name)} for name in ("one.json", "two.json")]
    return tiny.write_run(folder, folder / "model", folder / "one.json", data={"train": sources, **data})


def prepared(path: Path, *overrides: str) -> Prepared:
    return prepare(load(path, overrides), ("train", "eval"), Terminal())


def numbers(samples: Any) -> list[int]:
    """Which records a corpus holds, by their answers."""
    return [int(sample.text().rsplit("number", 1)[1]) for sample in samples]


def images(found: Prepared, split: Any) -> set[str]:
    corpus = found.corpora[split]
    return {Path(image.name).name for index in range(len(corpus)) for image in corpus.images(index)}


@pytest.mark.parametrize(("wanted", "count"), [("0.1", 6), ("0.35", 21), ("1", 1), ("25", 25)])
def test_no_image_is_on_both_sides(folder: Path, wanted: str, count: int) -> None:
    path = run_over(folder)
    found = prepared(path, f"data.hold_out={wanted}")
    train, held_out = found.corpora["train"], found.corpora["eval"]
    assert (len(held_out), len(train)) == (count, SAMPLES - count)
    assert sorted(images(found, "train") & images(found, "eval")) == []
    origins = [str(corpus.origin(index)) for corpus in (train, held_out) for index in range(len(corpus))]
    assert len(set(origins)) == SAMPLES, "nothing is lost"
    again = prepared(path, f"data.hold_out={wanted}").corpora["eval"]
    assert [again.origin(index) for index in range(count)] == [held_out.origin(index) for index in range(count)]
    if count > 1:
        other = prepared(path, f"data.hold_out={wanted}", "train.seed=7").corpora["eval"]
        assert [str(other.origin(i)) for i in range(count)] != [str(held_out.origin(i)) for i in range(count)]


def test_the_same_samples_are_held_out_wherever_the_data_lies(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "moved")
    here, there = (load_run(run_over(place, hold_out=6)) for place in (folder, tmp_path / "moved"))
    assert numbers(here.samples("eval")) == numbers(there.samples("eval"))


def test_what_cannot_be_held_out_is_said(folder: Path) -> None:
    path = run_over(folder)
    for setting, words in (
        ("data.hold_out=60", "leaves no sample on one of the sides"),
        ("data.hold_out=0.001", "0.001 of 60 samples leaves no sample"),
        ("data.hold_out=1.5", "data.hold_out"),
        ("data.hold_out=0", "data.hold_out"),
        (f"data={{train: [{{path: {folder / 'one.json'}}}], eval: [{{path: x}}], hold_out: 0.1}}", "give it or `eval`"),
    ):
        with pytest.raises(ConfigError, match=words):
            prepared(path, setting)
    records = [tiny.record(["images/0.png"], "<image>What?", f"number {number}") for number in range(4)]
    (folder / "one_image.json").write_text(json.dumps(records))
    with pytest.raises(ConfigError, match="smallest group of samples that share images has 4"):
        prepared(tiny.write_run(folder, folder / "model", folder / "one_image.json", data={"hold_out": 0.5}))


@hypothesis_settings(max_examples=100, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 9)), max_size=25))
def test_groups_are_connected_samples(pairs: list[tuple[int, int]]) -> None:
    samples, shown = np.array(pairs, np.int64).reshape(-1, 2).T
    expected = list(range(12))
    for _ in range(12):  # everyone takes the lowest number that is near, as often as there are samples
        for image in set(shown.tolist()):
            near = [sample for sample, other in pairs if other == image]
            lowest = min(expected[sample] for sample in near)
            for sample in near:
                expected[sample] = lowest
    assert groups_by_image(12, samples, shown).tolist() == expected


def test_first_and_some_of_a_source(folder: Path) -> None:
    sources = [{"path": str(folder / "one.json"), "first": 4}, {"path": str(folder / "two.json"), "first": 3}]
    held_out = [{"path": str(folder / "two.json"), "max_samples": 5}, {"path": str(folder / "one.json"), "first": 2}]
    path = run_over(folder, train=sources, eval=held_out)
    loaded = load_run(path)
    assert numbers(loaded.samples("train")) == [0, 2, 4, 6, 1, 3, 5]
    evaluated = numbers(loaded.samples("eval"))
    assert len(evaluated) == 7
    assert evaluated[:5] == sorted(set(evaluated[:5]))
    assert evaluated[:5] != [1, 3, 5, 7, 9], "chosen at random"
    assert evaluated[5:] == [0, 2]
    assert numbers(load_run(path).samples("eval")) == evaluated
    with pytest.raises(ConfigError, match="`weight` and `epochs` belong to sources of `train`"):
        load(path, ["data.eval.0.epochs=2"])
    both = prepared(run_over(folder, train=sources, hold_out=2))
    assert sorted(len(corpus) for corpus in both.corpora.values()) == [2, 5]


def test_rows_come_in_the_order_of_the_data(folder: Path) -> None:
    path = run_over(folder)
    options = ("train.shuffle=false", "batch.samples=7", "train.max_steps=3", "train.rows_per_step=2")
    settings = load(path, options)
    corpus = prepare(settings, ("train",), Terminal()).corpora["train"]
    plan = plan_training(settings, corpus, 2)
    assert plan.samples.tolist() == list(range(42))
    assert len(plan) == 6
    with pytest.raises(ConfigError, match=r"group_similar.*train\.shuffle: false"):
        load(path, ["train.shuffle=false", "batch={tokens: 100, group_similar: true}"])


def test_a_run_ends_after_its_steps_and_saves_and_evaluates_as_asked(
    folder: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_over(folder, hold_out=6)
    options = ("batch.samples=4", "train.epochs=3", "train.schedule=linear", "train.warmup=0")
    one = run(path, *options, "train.max_steps=4", f"output={folder / 'short'}")
    assert len(losses(one)) == 4
    rates = [entry["learning_rate"] for entry in one if "loss" in entry]
    assert rates == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4]), "the schedule ends with the steps"
    assert one[-1]["epoch"] == pytest.approx(4 / 14)
    assert sum("eval_loss" in entry for entry in one) == 1, "evaluated and saved at its end"
    assert (folder / "short" / "checkpoint-4").is_dir()
    silent = ("train.save_every=null", "train.eval_every=null", "train.max_steps=90", f"output={folder / 'silent'}")
    two = run(path, *options, "train.epochs=1", *silent)
    assert len(losses(two)) == 14  # 54 samples in rows of 4
    assert not any("eval_loss" in entry for entry in two)
    assert not list((folder / "silent").glob("checkpoint-*"))
    assert (folder / "silent" / "final").is_dir()
    assert "train.max_steps: 90 steps are not reached in 1 epochs" in caplog.text + capsys.readouterr().err


@pytest.mark.parametrize("system", ["You are terse.", ""])
def test_a_system_prompt_goes_where_a_record_has_none(tmp_path: Path, system: str) -> None:
    tiny.write_model(tmp_path / "model")
    turn = {"role": "system", "content": "Mine."}
    dialogue = [{"role": "user", "content": "Old?"}, {"role": "assistant", "content": "No."}]
    records = [{"messages": dialogue}, {"messages": [turn, *dialogue]}, {"messages": dialogue, "system": "Beside."}]
    (tmp_path / "data.json").write_text(json.dumps(records))
    path = tiny.write_run(tmp_path, tmp_path / "model", tmp_path / "data.json", data={"system": system})
    texts = [sample.text() for sample in load_run(path).samples()]
    assert [text.split("user")[0].removeprefix("system\n").strip() for text in texts] == [system, "Mine.", "Beside."]
