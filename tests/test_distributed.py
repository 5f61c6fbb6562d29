"""Two ranks against one, through the launcher: same rows, same losses, same weights; no rank waits for another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from triptych.errors import ConfigError
from triptych.forward.isolation import Isolation
from triptych.planning.cost import model_cost
from triptych.run.prepare import plan_training, prepare
from triptych.run.run_file import load
from triptych.terminal import Terminal
from triptych.training.context import TrainingContext
from triptych.training.hf_arguments import training_arguments
from triptych.training.train import _check_sharding


def launch(path: Path, ranks: int, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Train through torchrun on this machine's CPU."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "triptych", "train", str(path), *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)


def losses(output: Path, key: str = "loss") -> list[float]:
    return [entry[key] for entry in map(json.loads, (output / "log.jsonl").read_text().splitlines()) if key in entry]


def test_two_ranks_are_one(small_model_dir: Path, tmp_path: Path) -> None:
    # Some rows hold no image at all, and 11 rows do not divide by two: neither may make a rank wait.
    data = tiny.write_dataset(tmp_path, 17, max_images=1)
    held_out = tiny.write_dataset(tmp_path, 5, seed=5, name="held.json")
    sources = [{"path": str(data)}, {"path": str(held_out), "loss_weight": 2.5}]
    settings = {
        "data": {"train": sources, "eval": [{"path": str(held_out)}]},
        "batch": {"samples": 2},
        "train": {"rows_per_step": 4},
    }
    path = tiny.write_run(tmp_path, small_model_dir, data, **settings)
    one = launch(path, 1, f"output={tmp_path / 'one'}")
    assert one.returncode == 0, one.stderr
    two = launch(path, 2, f"output={tmp_path / 'two'}")
    assert two.returncode == 0, two.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    for key in ("eval_loss", "loss/train.json", "share/train.json", "loss/held.json", "share/held.json"):
        assert losses(tmp_path / "two", key) == pytest.approx(losses(tmp_path / "one", key), rel=1e-5)
    left, right = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(left[name], right[name], atol=2e-5) for name in left)
    assert two.stderr.count("supervised)") == 1, "one rank speaks for the run"


def test_two_ranks_with_rows_dealt_by_cost_are_one(small_model_dir: Path, tmp_path: Path) -> None:
    data = tiny.write_dataset(tmp_path, 30)
    held_out = tiny.write_dataset(tmp_path, 7, seed=5, name="held.json")
    settings = {
        "data": {"eval": [{"path": str(held_out)}]},
        "batch": {"samples": None, "tokens": 160, "patches": 400},
        "train": {"rows_per_step": 4, "epochs": 2},
    }
    path = tiny.write_run(tmp_path, small_model_dir, data, **settings)
    loaded = load(path)
    prepared = prepare(loaded, ("train",), Terminal())
    cost = model_cost(loaded.model.recipe, prepared.files.shapes)
    alone, shared = (plan_training(loaded, prepared.corpora["train"], world, cost) for world in (1, 2))
    whole = len(alone) // 4 * 4
    assert any(alone.row(number).tolist() != shared.row(number).tolist() for number in range(whole))
    one, two = (launch(path, ranks, f"output={tmp_path / str(ranks)}") for ranks in (1, 2))
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    for key in ("loss", "eval_loss"):
        assert losses(tmp_path / "2", key) == pytest.approx(losses(tmp_path / "1", key), rel=1e-5)
    left, right = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("1", "2"))
    assert all(torch.allclose(left[name], right[name], atol=2e-5) for name in left)


def test_two_ranks_whose_rows_go_sample_by_sample_are_one(tmp_path: Path) -> None:
    # The ranks run the model a different number of times per row: neither may wait for the other.
    model = tiny.write_model(tmp_path / "model", family="qwen3_5", max_pixels=96 * 96)
    data = tiny.write_dataset(tmp_path, 14, max_images=2)
    batch = {"samples": None, "tokens": 160, "patches": 400}
    path = tiny.write_run(tmp_path, model, data, batch=batch, train={"rows_per_step": 2})
    one, two = (launch(path, ranks, f"output={tmp_path / str(ranks)}") for ranks in (1, 2))
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    assert "one sample at a time: Qwen3.5" in two.stderr
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=1e-5)


def test_sharding_that_would_not_happen_is_refused(tmp_path: Path, small_model_dir: Path) -> None:
    path = tiny.write_run(tmp_path, small_model_dir, tiny.write_dataset(tmp_path, 4))
    with pytest.raises(ConfigError, match=r"train\.hf\.fsdp: no accelerator is there"):
        training_arguments(load(path, ["train.hf={fsdp: true}"]), torch.float32)


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("sharding", [{"fsdp": True, "deepspeed": None}, {"fsdp": None, "deepspeed": "zero3.json"}])
def test_a_model_that_runs_sample_by_sample_is_not_sharded(packs: bool, sharding: dict[str, Any]) -> None:
    args: Any = SimpleNamespace(**sharding)
    nothing: Any = None
    isolation = Isolation(packs=packs, reason="it cannot pack")
    settings: Any = SimpleNamespace(train=SimpleNamespace(metric="eval_loss"))
    context = TrainingContext(settings, nothing, nothing, args, torch.float32, isolation, {})
    if packs:
        _check_sharding(context)
        settings.train.metric = "exact_match"
        with pytest.raises(ConfigError, match=r"exact_match needs generated answers.*set train\.metric: eval_loss"):
            _check_sharding(context)
        return
    with pytest.raises(ConfigError, match="it cannot pack, and under FSDP or DeepSpeed"):
        _check_sharding(context)


def test_rows_that_do_not_divide_among_the_ranks_are_refused(small_model_dir: Path, tmp_path: Path) -> None:
    path = tiny.write_run(tmp_path, small_model_dir, tiny.write_dataset(tmp_path, 4), train={"rows_per_step": 3})
    found = launch(path, 2)
    assert found.returncode != 0
    assert "3 rows do not divide among 2 ranks" in found.stderr
