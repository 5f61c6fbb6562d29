"""Training with ``batch.share``: the same weights as without, in less work, with everything that a run can do."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from test_distributed import launch, losses
from triptych.commands.plan import PlanOptions, plan
from triptych.errors import ConfigError
from triptych.recovery import resume
from triptych.recovery.start import starting
from triptych.run.prepare import prepare
from triptych.run.run_file import load
from triptych.run.sharing import ShareDecision
from triptych.terminal import Terminal
from triptych.training.context import TrainingContext
from triptych.training.train import train

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

QUESTIONS = 4
PER_IMAGE_SET = [*tiny.WORDS[:QUESTIONS]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six sets of two images with four questions each, and four samples that share nothing."""
    folder = tmp_path_factory.mktemp("questions")
    records = []
    for number in range(6):
        images = [
            str(tiny.write_image(folder / f"{number}-{side}.png", 80, 84, seed=2 * number + side)) for side in (0, 1)
        ]
        records += [
            tiny.record(images, f"<image><image>{question}", tiny.ANSWERS[(number + n) % 5])
            for n, question in enumerate(PER_IMAGE_SET)
        ]
    records += [tiny.record([], f"{number}. {tiny.WORDS[number]}", "yes") for number in range(4)]
    path = folder / "train.json"
    path.write_text(json.dumps(records))
    return path


def run(folder: Path, model: Path, data: Path, /, **settings: Any) -> Path:
    """The folder of a run's final model."""
    batch = {"samples": None, "tokens": 300, "share": "on"} | settings.get("batch", {})
    file = tiny.write_run(folder, model, data, **(settings | {"batch": batch}))
    run_settings = load(file)
    return train(run_settings, prepare(run_settings, ("train",), Terminal()), Terminal())


def weights(final: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in final.glob("*.safetensors") for name, tensor in load_file(file).items()}


def moved(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    return max(float((left[name].float() - right[name].float()).norm()) for name in left)


ROWS_OF_FOUR = {"tokens": None, "samples": 4}
FROZEN = ["vision", "merger"]
RUNS: dict[str, dict[str, Any]] = {
    "full, accumulated": {"train": {"rows_per_step": 3, "epochs": 2}},
    "checkpointing, rows of four": {"batch": ROWS_OF_FOUR, "train": {"gradient_checkpointing": True}},
    "lora, stored features": {"model": {"train": "lora", "freeze": FROZEN}, "train": {"feature_cache": "on"}},
    "tower alone, logits in chunks": {"model": {"freeze": ["language"]}, "train": {"logits_mb": 1}},
}


@pytest.mark.parametrize(
    "name", [name if name.startswith("full") else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)
def test_a_shared_run_ends_at_the_same_weights(
    data: Path, small_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    # Not Adam, whose first steps are signs: rounding would decide them.
    train = {"learning_rate": 0.05, "schedule": "constant", "warmup": 0, "hf": {"optim": "sgd"}}
    settings = RUNS[name] | {"train": train | RUNS[name]["train"]}
    finals = []
    for share in (None, "nothing"):
        if share:  # the same rows, each sample computed alone
            monkeypatch.setattr(TrainingContext, "share", share)
        folder = tmp_path / (share or "shared")
        folder.mkdir()
        finals.append(run(folder, small_model_dir, data, **settings))
    found, expected = map(weights, finals)
    assert moved(found, expected) < 1e-4, name
    if "model" not in settings:
        assert moved(expected, weights(small_model_dir)) > 0.05, "the run must learn for this to mean something"
    lines = [[json.loads(line) for line in (final.parent / "log.jsonl").read_text().splitlines()] for final in finals]
    losses = [[line["loss"] for line in run if "loss" in line] for run in lines]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4), name


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")


def shown(capsys: pytest.CaptureFixture[str], file: Path, *overrides: str) -> str:
    """What ``triptych plan`` says of sharing."""
    plan(file, overrides, PlanOptions())
    return next((line for line in capsys.readouterr().err.splitlines() if line.startswith("sharing")), "")


def test_plan_says_what_sharing_saves_and_counts_it(
    data: Path, small_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tiny.write_run(tmp_path, small_model_dir, data, batch={"samples": None, "tokens": 400})
    advice = shown(capsys, file)
    found = r"\d\d% of the tokens are shared by samples that begin alike; an epoch takes 0\.\d\d of the work"
    assert re.fullmatch(rf"sharing off; batch\.share=auto would help: {found}", advice)
    for value in ("auto", "on"):
        assert shown(capsys, file, f"batch.share={value}") == "sharing: " + advice.partition("help: ")[2] + (
            "; samples of one group come in one row"
        )
    plan(file, [], PlanOptions(as_json=True))
    alone = json.loads(capsys.readouterr().out)
    plan(file, ["batch.share=on"], PlanOptions(as_json=True))
    shared = json.loads(capsys.readouterr().out)
    assert (shared["samples"], shared["steps"]) == (alone["samples"], alone["steps"]), "what a step holds stays"
    assert shared["tokens"] == pytest.approx(alone["tokens"] * (1 - shared["sharing"]["saves"]["tokens"]))
    assert shared["memory_bytes"]["activations"] < 0.8 * alone["memory_bytes"]["activations"]
    assert (alone["sharing"]["on"], shared["sharing"]["on"]) == (False, True)


def test_auto_leaves_samples_alone_that_share_nothing(
    small_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tiny.write_run(tmp_path, small_model_dir, tiny.write_dataset(tmp_path, 12), batch={"share": "auto"})
    assert shown(capsys, file) == "sharing off: it would save 0% of the work"
    assert shown(capsys, file, "batch.share=off") == ""


def test_what_cannot_share_is_refused_or_left_off_with_the_reason(
    data: Path, small_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tiny.write_run(tmp_path, small_model_dir, data, model={"attention": "sdpa"})
    with pytest.raises(ConfigError, match=r"batch\.share: on, but model\.attention: sdpa knows no samples that share"):
        plan(file, ["batch.share=on"], PlanOptions())
    capsys.readouterr()
    assert shown(capsys, file, "batch.share=auto").startswith("sharing off: model.attention: sdpa knows no")
    recurrent = tiny.write_model(tmp_path / "recurrent", family="qwen3_5")
    settings = [f"model.path={recurrent}", "model.attention=auto", "data.min_pixels=25600", "batch.share=on"]
    found = shown(capsys, file, *settings)
    assert "of the image patches are shared" in found
    assert found.endswith("Qwen3.5's recurrent layers cannot branch, so only images are")


def test_a_resumed_run_takes_the_rows_of_its_first_start(
    data: Path, small_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"train": {"save_every": 2, "keep_checkpoints": None}}
    whole = run(tmp_path, small_model_dir, data, **settings)
    before = weights(whole)
    for name in ("final", *(f"checkpoint-{step}" for step in range(3, 20))):
        shutil.rmtree(tmp_path / "run" / name, ignore_errors=True)
    found = load(tmp_path / "run.yaml")
    with starting(found, Terminal(), resuming=True) as (resumed, prepared, start):
        # The samples that were recorded decide, not what would be found now.
        monkeypatch.setattr(resume, "decide_sharing", lambda *_: ShareDecision(None, None, ""))
        assert start.samples.sharing is not None
        train(resumed, prepared, Terminal(), start=start)
    assert moved(weights(whole), before) == 0.0
    shutil.rmtree(whole)
    other = starting(load(tmp_path / "run.yaml", ["batch.share=off"]), Terminal(), resuming=True)
    with pytest.raises(ConfigError, match=r'batch\.share: "on" -> "off" \(it decides which samples share a step\)'):
        other.__enter__()


@pytest.mark.slow
def test_two_ranks_are_one(data: Path, small_model_dir: Path, tmp_path: Path) -> None:
    batch = {"samples": None, "tokens": 300, "share": "on"}
    file = tiny.write_run(tmp_path, small_model_dir, data, batch=batch, train={"rows_per_step": 4, "epochs": 2})
    for ranks in (1, 2):
        found = launch(file, ranks, f"output={tmp_path / str(ranks)}")
        assert found.returncode == 0, found.stderr
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=1e-5)
    left, right = (weights(tmp_path / name / "final") for name in ("1", "2"))
    assert all(torch.allclose(left[name], right[name], atol=2e-5) for name in left)
