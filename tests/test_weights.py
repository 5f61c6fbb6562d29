"""Loss where it is asked for: weights of turns, samples and sources, what is supervised, and the loss per source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel

import tiny
from families import FAMILIES
from test_train import losses, run
from triptych.errors import ConfigError, Origin, Problem, SampleError
from triptych.family.family import read_model_files
from triptych.forward.batch import build_batch
from triptych.forward.row_forward import RowForward
from triptych.model.loading import PixelNormalizer, load_model
from triptych.model.trainable import set_up_training
from triptych.run.prepare import Prepared, prepare
from triptych.run.run_file import from_mapping, load
from triptych.run.settings import ModelSettings
from triptych.sources.records import Record, Source
from triptych.terminal import Terminal
from triptych.text.conversation import Conversation, parse
from triptych.text.template import Template

# peft 0.21 still reads the attribute that transformers 5.23 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def dialogue(*answers: dict[str, Any], **extra: Any) -> dict[str, Any]:
    """A record of a question before each answer."""
    turns: list[dict[str, Any]] = []
    for number, keys in enumerate(answers):
        turns.append({"role": "user", "content": f"Question {number}?"})
        turns.append({"role": "assistant", "content": f"Answer {number}.", **keys})
    return {"messages": turns, **extra}


def read(data: dict[str, Any], **source: Any) -> Conversation:
    return parse(Record(data, Origin("data.json", 1)), Source("data.json", **source))


def problems(data: dict[str, Any], **source: Any) -> list[Problem]:
    with pytest.raises(SampleError) as caught:
        read(data, **source)
    return list(caught.value.problems)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[float], float]] = {
    "none": (dialogue({}, {}), {}, [0, 1, 0, 1], 1),
    "of a turn": (dialogue({"weight": 0.25}, {}), {}, [0, 0.25, 0, 1], 1),
    "off": (dialogue({"weight": 0}, {"loss": True, "weight": 3}), {}, [0, 0, 0, 3], 1),
    "left out": (dialogue({"weight": 0.25}, {}, weight=4), {"ignore": ["weight"]}, [0, 1, 0, 1], 1),
    "of the record": (dialogue({}, {"loss_weight": 2}, sample_weight=0.5), {}, [0, 1, 0, 2], 0.5),
    "of the record, named": (dialogue({}, quality=0.5), {"columns": {"weight": "quality"}}, [0, 1], 0.5),
    "another key is a note then": (dialogue({}, q=2, weight=7), {"columns": {"weight": "q"}}, [0, 1], 2),
    "text under a key of a weight": (dialogue({}, weight="12 kg", train="2014"), {}, [0, 1], 1),
    "the last answer": (dialogue({"weight": 2}, {"weight": 3}), {"supervise": "last"}, [0, 0, 0, 3], 1),
    "all text": (dialogue({}, {"loss": False}), {"supervise": "all"}, [1, 1, 1, 0], 1),
}


@pytest.mark.parametrize("case", CASES)
def test_a_record_says_what_counts_how_much(case: str) -> None:
    data, source, of_turns, of_sample = CASES[case]
    found = read(data, **source)
    assert ([turn.weight for turn in found.turns], found.weight) == (of_turns, of_sample)


@pytest.mark.parametrize(
    ("data", "source", "code", "words"),
    [
        (dialogue({"weight": -1}), {}, "bad-shape", "`weight` is true, false, or a weight: 0, or from 0.000001"),
        (dialogue({"weight": 1e9}), {}, "bad-shape", "to 1,000,000; this is 1000000000"),
        (dialogue({"weight": 2, "loss_scale": 3}), {}, "bad-shape", "`weight` and `loss_scale` contradict"),
        (dialogue({"weight": 2, "train": False}), {}, "bad-shape", "contradict"),
        (dialogue({}, weight=-0.5), {}, "bad-shape", "`ignore: [weight]` in the source leaves it out"),
        (dialogue({}, weight=0), {}, "empty-answer", "nothing of the record is learned; remove the record"),
        (dialogue({}, train=False), {}, "empty-answer", "`train` says that nothing"),
        (dialogue({"weight": 0}), {}, "empty-answer", "every answer has"),
        (dialogue({}, {"weight": 0}), {"supervise": "last"}, "empty-answer", "the last answer has"),
        (dialogue({}, quality="good", w=[1]), {"columns": {"weight": "w"}}, "bad-shape", "`w` is true, false"),
    ],
)
def test_what_is_no_weight_is_said(data: dict[str, Any], source: dict[str, Any], code: str, words: str) -> None:
    (problem,) = problems(data, **source)
    assert problem.code == code
    assert words in problem.message


@pytest.fixture(scope="module", params=FAMILIES)
def template(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Template:
    folder = tmp_path_factory.mktemp("template")
    return read_model_files(str(tiny.write_model(folder / "model", family=request.param))).template()


def test_all_text_is_every_token_but_the_first_and_images(template: Template) -> None:
    data = dialogue({}, {"content": "<think>\nHm.\n</think>\n\nSo <image>."}, images=["a.png"], weight=0.5)
    plain, whole = (template.encode(read(data, supervise=how)) for how in ("answers", "all"))
    assert np.array_equal(plain.ids, whole.ids)
    expected = np.full(len(whole.ids), np.float32(0.5))
    expected[0] = 0
    for slot in whole.slots.tolist():
        expected[slot - 1 : slot + 2] = 0
    assert np.array_equal(whole.weights, expected)
    assert set(plain.weights.tolist()) == {0.0, 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources of weighted turns and samples, and a run over them."""
    folder = tmp_path_factory.mktemp("weights")
    tiny.write_model(folder / "model", max_pixels=96 * 96)
    for name, seed in (("one.json", 3), ("two.json", 4)):
        path = tiny.write_dataset(folder, 9, seed=seed, name=name)
        records = json.loads(path.read_text())
        for number, record in enumerate(records):
            record["weight"] = (0.5, 1, 3)[number % 3]
            record["conversations"][1]["weight"] = (2, 0.1)[number % 2]
        path.write_text(json.dumps(records))
    sources = [{"path": str(folder / "one.json"), "loss_weight": 0.2}, {"path": str(folder / "two.json")}]
    tiny.write_run(folder, folder / "model", folder / "one.json", data={"train": sources}, batch={"samples": 3})
    return folder


@pytest.fixture(scope="module")
def prepared(folder: Path) -> Prepared:
    return prepare(load(folder / "run.yaml"), ("train",), Terminal())


def plain_loss(model: PreTrainedModel, prepared: Prepared, index: int) -> tuple[torch.Tensor, float]:
    """The weighted sum of one sample's cross entropies by transformers' logits of every position, and its weights."""
    corpus = prepared.corpora["train"]
    layout = corpus.layout(index)
    ids = torch.from_numpy(layout.input_ids)[None]
    inputs: dict[str, Any] = {"input_ids": ids}
    if len(layout.grids):
        batch = build_batch(corpus, [index], filler=prepared.encoder.template.filler())
        inputs["pixel_values"] = PixelNormalizer(prepared.files)(batch.pixels)
        inputs["image_grid_thw"] = torch.from_numpy(layout.grids)
        inputs["mm_token_type_ids"] = (ids == prepared.encoder.template.image_pad).int()
    logits = model(**inputs).logits[0, :-1].double()
    each = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    weights = torch.from_numpy(layout.weights[1:]).double()
    return (each * weights).sum(), float(weights.sum())


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("how", ["full", "lora"])
def test_a_weighted_row_is_the_plain_weighted_sum(folder: Path, prepared: Prepared, how: str) -> None:
    settings = ModelSettings.model_validate({"path": str(folder / "model"), "train": how, "full": []})
    loaded = load_model(settings)
    model: Any = set_up_training(loaded, prepared.files.family, settings, torch.float32).eval()
    indices = [0, 1, 9, 10, 11]
    batch = build_batch(prepared.corpora["train"], indices, filler=prepared.encoder.template.filler())
    chunk = 4 * 7 * model.config.get_text_config().vocab_size  # seven tokens at a time
    forward = RowForward(PixelNormalizer(prepared.files), logits_limit=chunk)
    found, each = forward.losses(model, batch)
    made = gradients(model, found)
    plain = [plain_loss(model, prepared, index) for index in indices]
    expected = torch.stack([loss for loss, _ in plain]).sum()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (each * batch.weights).sum().item() == pytest.approx(expected.item(), rel=1e-6)
    assert float(batch.weights.sum()) == pytest.approx(sum(weight for _, weight in plain))
    wanted = gradients(model, expected)
    assert made.keys() == wanted.keys()
    for name, value in wanted.items():
        assert float((made[name] - value).norm()) <= 1e-5 * float(value.norm().clamp(min=1e-9)), name
    parts = [forward.losses(model, part) for part in batch.unpack()]
    assert torch.stack([loss for loss, _ in parts]).sum().item() == pytest.approx(found.item(), rel=1e-6)


def test_steps_are_weighted_means_and_sources_add_up(folder: Path, prepared: Prepared) -> None:
    """Of a run whose weights hardly move, against transformers; accumulated rows are one step."""
    options = ("train.learning_rate=1e-12", "train.rows_per_step=2")
    first, second = (f"output={folder / name}" for name in ("first", "second"))
    entries = [entry for entry in run(folder / "run.yaml", *options, first) if "loss" in entry]
    every = [entry for entry in run(folder / "run.yaml", *options, second, "train.log_every=3") if "loss" in entry]
    model = AutoModelForImageTextToText.from_pretrained(folder / "model")
    settings = load(folder / "run.yaml", options)
    from triptych.run.prepare import plan_training

    plan = plan_training(settings, prepared.corpora["train"], 1, None)
    assert len(entries) == 3
    for step, entry in enumerate(entries):
        samples = [int(index) for row in (2 * step, 2 * step + 1) for index in plan.row(row)]
        with torch.no_grad():
            plain = [plain_loss(model, prepared, index) for index in samples]
        total = sum(weight for _, weight in plain)
        assert entry["loss"] == pytest.approx(sum(float(loss) for loss, _ in plain) / total, rel=1e-6)
        for number, name in enumerate(("one.json", "two.json")):
            own = [pair for index, pair in zip(samples, plain, strict=True) if (index >= 9) == number]
            weight = sum(weight for _, weight in own)
            assert entry.get(f"share/{name}", 0) == pytest.approx(weight / total)
            if own:
                assert entry[f"loss/{name}"] == pytest.approx(sum(float(loss) for loss, _ in own) / weight, rel=1e-6)
    for entry in (*entries, *every):
        names = [key.removeprefix("loss/") for key in entry if key.startswith("loss/")]
        added = sum(entry[f"loss/{name}"] * entry[f"share/{name}"] for name in names)
        assert added == pytest.approx(entry["loss"], rel=1e-6)
        assert sum(entry[f"share/{name}"] for name in names) == pytest.approx(1)


def test_weights_that_are_all_alike_change_nothing(folder: Path, tmp_path: Path) -> None:
    data = tiny.write_dataset(tmp_path, 8, name="plain.json")
    path = tiny.write_run(tmp_path, folder / "model", data)
    plain = losses(run(path, f"output={tmp_path / 'plain'}"))
    half = losses(run(path, "data.train.0.loss_weight=0.25", f"output={tmp_path / 'half'}"))
    assert half == pytest.approx(plain, rel=1e-6)
    assert all("loss/plain.json" not in entry for entry in run(path, f"output={tmp_path / 'again'}"))


def test_a_weight_of_another_kind_is_told_apart() -> None:
    base: dict[str, Any] = {"model": {"path": "m"}, "batch": {"samples": 1}, "output": "o"}
    for data, words in (
        ({"train": [{"path": "a"}], "eval": [{"path": "b", "loss_weight": 2}]}, "`loss_weight` belongs to sources"),
        ({"train": [{"path": "a", "loss_weight": 0}]}, "data.train.0.loss_weight"),
        ({"train": [{"path": "a"}], "supervise": "user"}, "data.supervise"),
    ):
        with pytest.raises(ConfigError, match=words):
            from_mapping({**base, "data": data}, [])
