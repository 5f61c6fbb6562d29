"""``triptych plan``: what it prints is what training will do, and its memory is what a step keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from triptych.commands.plan import PlanOptions, plan
from triptych.errors import ConfigError
from triptych.forward.attention import install_attention
from triptych.forward.batch import build_batch
from triptych.forward.memory import MemoryModel, RowSize, StepOptions
from triptych.forward.row_forward import RowForward
from triptych.model.loading import PixelNormalizer, load_model
from triptych.model.trainable import checkpoint_layers, set_up_training
from triptych.planning.balance import idle_share
from triptych.planning.cost import model_cost
from triptych.run.prepare import Prepared, plan_training, prepare
from triptych.run.run_file import load
from triptych.terminal import Terminal

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def cells(shown: str) -> dict[str, str]:
    """First column -> second column of the tables in what was printed."""
    rows = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in shown.splitlines() if "│" in line]
    return {row[0]: row[1] for row in rows if len(row) > 1}


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture
def run_file(small_model_dir: Path, tmp_path: Path) -> Path:
    data = tiny.write_dataset(tmp_path, 40)
    batch = {"samples": None, "tokens": 160, "patches": 400}
    return tiny.write_run(tmp_path, small_model_dir, data, batch=batch, train={"epochs": 2, "rows_per_step": 2})


def test_the_numbers_are_those_of_the_layouts(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan(run_file, (), PlanOptions(world_size=2, dry_run_worst=False))
    shown = cells(capsys.readouterr().err)
    settings = load(run_file)
    corpus = prepare(settings, ("train",), Terminal()).corpora["train"]
    layouts = [corpus.layout(index) for index in range(len(corpus))]
    tokens = sum(len(layout.input_ids) for layout in layouts)
    pads = corpus.geometry.merge_size**2
    images = sum(int(layout.grids.prod(1).sum()) // pads for layout in layouts)
    assert shown["samples per epoch"] == "40"
    assert shown["tokens per epoch"] == f"{tokens:,}"
    assert shown["of them in images"] == f"{images / tokens:.1%}"
    assert shown["of them supervised"] == f"{sum(int(x.supervised.sum()) for x in layouts) / tokens:.1%}"
    assert int(shown["rows"]) % 2 == 0, "as many for each of two ranks"
    assert int(shown["steps"]) == int(shown["rows"]) // 2
    longest = max(range(len(layouts)), key=lambda index: len(layouts[index].input_ids))
    assert shown[str(corpus.origin(longest))] == f"{len(layouts[longest].input_ids)}"
    assert int(shown["tokens of the longest row"]) <= 160


def test_a_mixture_shows_exact_counts(
    small_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["a.json", "b.json"]
    for seed, name in enumerate(names):
        tiny.write_dataset(tmp_path, 20, seed=seed, name=name)
    run_file = tiny.write_run(tmp_path, small_model_dir, tmp_path / "a.json")
    content = json.loads(run_file.read_text())
    shares = [{"weight": 3}, {"weight": 1, "max_samples": 12}]
    content["data"]["train"] = [
        {"path": str(tmp_path / name), **share} for name, share in zip(names, shares, strict=True)
    ]
    run_file.write_text(json.dumps(content))
    plan(run_file, ("train.rows_per_step=3",), PlanOptions(world_size=1, dry_run_worst=False))
    shown = capsys.readouterr().err
    assert "75.0%" in shown
    assert cells(shown)["samples per epoch"] == "32"
    assert cells(shown)["rows"] == "8"


def test_how_long_ranks_wait_is_printed_where_there_are_several(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(run_file, (), PlanOptions(world_size=1, dry_run_worst=False))
    assert "wait for each other" not in capsys.readouterr().err
    plan(run_file, ("train.rows_per_step=8",), PlanOptions(world_size=2, dry_run_worst=False))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "wait for each other" in line]
    settings = load(run_file, ("train.rows_per_step=8",))
    prepared = prepare(settings, ("train",), Terminal())
    corpus = prepared.corpora["train"]
    cost = model_cost(settings.model.recipe, prepared.files.shapes)
    assert cost is not None
    balanced, drawn = (
        idle_share(plan_training(settings, corpus, 2, given).sums(corpus.costs(cost)), 8, 2) for given in (cost, None)
    )
    assert balanced < drawn
    assert line.startswith(f"2 ranks wait for each other, estimated: {balanced:.1%} of their time")
    assert f"in the order drawn {drawn:.1%}" in line


def test_ranks_that_do_not_divide_the_rows_of_a_step_are_refused(run_file: Path) -> None:
    with pytest.raises(ConfigError, match="do not divide among 3 ranks"):
        plan(run_file, (), PlanOptions(world_size=3, dry_run_worst=False))


def test_the_dry_run_trains_on_the_largest_row(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan(run_file, (), PlanOptions(world_size=1, dry_run_worst=True))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("largest row, run on")]
    loss = float(line.partition("loss ")[2].partition(",")[0])
    assert 1 < loss < 12
    assert "peak memory" in line


def prepared_row(run_file: Path, *overrides: str) -> tuple[Any, Prepared, Any]:
    settings = load(run_file, overrides)
    prepared = prepare(settings, ("train",), Terminal())
    corpus = prepared.corpora["train"]
    order = np.argsort(-corpus.lengths.patches)[:20].tolist()
    return settings, prepared, build_batch(corpus, order, filler=prepared.encoder.template.filler())


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("model.attention=sdpa",),
        ("model.freeze=[vision]",),
        ("model.freeze=[vision, merger]",),
        ("train.gradient_checkpointing=true",),
        ("train.gradient_checkpointing=true", "model.attention=sdpa"),
    ],
    ids=["all", "masked", "frozen tower", "language alone", "checkpointing", "checkpointing, masked"],
)
def test_the_estimate_is_what_the_backward_pass_is_given(run_file: Path, overrides: tuple[str, ...]) -> None:
    settings, prepared, batch = prepared_row(run_file, *overrides)
    family = prepared.files.family
    loaded = load_model(settings.model)
    attention = install_attention(
        loaded, settings.model.attention, torch.device("cpu"), torch.float32, recurrent=family.recurrent
    )
    model = set_up_training(loaded, family, settings.model, torch.float32).train()
    checkpointing = settings.train.gradient_checkpointing
    if checkpointing:
        checkpoint_layers(model)
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = RowForward(PixelNormalizer(prepared.files), attention=attention).summed_loss(model, batch)
    name = attention.name
    estimate = MemoryModel(
        model, family, model.config, torch.float32, StepOptions(checkpointing=checkpointing, attention=name)
    )
    size = RowSize(batch.input_ids.shape[1], len(batch.pixels), len(batch.targets))
    step = estimate.step(size)
    assert loss.item() > 0
    measured = sum(kept.values())
    expected = step.activations  # logits are there while the loss is computed, and not kept
    if checkpointing:
        # The hooks do not see the layer that is computed again in the backward pass; the estimate holds one.
        all_kept = MemoryModel(
            model, family, model.config, torch.float32, StepOptions(checkpointing=False, attention=name)
        )
        everything = all_kept.step(size)
        assert measured < expected < everything.total - everything.weights - everything.gradients
    else:
        assert 0.8 < measured / expected < 1.25
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (step.gradients, step.optimizer) == (4 * trained, 8 * trained)
    assert step.weights == sum(p.numel() * p.element_size() for p in model.parameters())


def test_the_verdict_says_device_memory_and_time(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan(run_file, (), PlanOptions(gpu="24GB"))
    shown = capsys.readouterr().err
    assert "device:  24 GB GPU (as RTX 4090), bfloat16" in shown
    assert "estimated: fits the 23.7 GB for tensors" in shown
    assert "(assumed: 25% of 165 TFLOP/s; not measured)" in shown
    plan(run_file, (), PlanOptions(gpu="H100"))
    assert "device:  H100 (80 GB), bfloat16" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="not known; give its memory"):
        plan(run_file, (), PlanOptions(gpu="Voodoo"))


def test_what_does_not_fit_is_said_with_what_would_save(
    run_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triptych.estimate.devices.GIB", 2**20)  # a GPU of 12 MB for a tiny model
    plan(run_file, (), PlanOptions(gpu="12GB"))
    shown = capsys.readouterr().err
    assert "does NOT fit" in shown
    saved = cells(shown)
    assert float(saved["model.train=lora"]) >= 0
    assert "train.gradient_checkpointing=true" in saved


def test_json_holds_what_is_shown(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan(run_file, (), PlanOptions(gpu="24GB", fit=True, as_json=True))
    printed = json.loads(capsys.readouterr().out)
    assert printed["fits"] is True
    assert printed["memory_bytes"]["total"] <= printed["device"]["usable_bytes"]
    assert printed["batch"]["tokens"] % 256 == 0
    assert printed["rows"] == 2


def test_rows_that_fit_are_the_largest_that_do(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from triptych.estimate.devices import named_target
    from triptych.estimate.fit import STEP, fitted, largest_row, longest
    from triptych.estimate.forecast import Forecast

    settings = load(run_file)
    prepared = prepare(settings, ("train",), Terminal())
    corpus = prepared.corpora["train"]
    monkeypatch.setattr("triptych.estimate.devices.GIB", 2**20)
    forecast = Forecast(settings, prepared.files, named_target("80GB", settings.model))
    tokens = largest_row(forecast, longest(corpus))
    assert tokens is not None
    room = forecast.target.usable
    assert room is not None
    most = longest(corpus).tokens
    assert forecast.step(longest(corpus).row(tokens)).total <= room
    assert tokens + STEP > most or forecast.step(longest(corpus).row(tokens + STEP)).total > room
    monkeypatch.setattr("triptych.estimate.devices.GIB", 2**17)
    with pytest.raises(ConfigError, match="longest sample alone"):
        fitted(Forecast(settings, prepared.files, named_target("12GB", settings.model)), corpus)


def test_batch_auto_trains_and_goes_on_with_the_same_rows(run_file: Path) -> None:
    from triptych.api import load_run, train

    content = json.loads(run_file.read_text())
    content["batch"] = "auto"
    run_file.write_text(json.dumps(content))
    run = load_run(run_file, {"train.epochs": 1, "train.save_every": 1})
    assert run.settings.batch.auto
    final = train(run).final
    assert load(final / "run.yaml").batch.tokens is not None
    train(run, resume=True)
