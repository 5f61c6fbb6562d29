"""A loss that is not finite ends the run, one that jumps is said, a large row is split, the best model is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli_server import Server
from results import losses, same
from triptych.recovery.health import SpikeWatch

Write = Callable[..., Path]

CHANGED_LOSS = """
import torch, triptych.forward.row_forward as f
real, count = f.RowForward.losses, [0]
def changed(self, model, row):
    count[0] += model.training
    loss, each = real(self, model, row)
    return (CHANGE if count[0] == AT and model.training else loss), each
f.RowForward.losses = changed
"""


def changing(what: str, at: int) -> str:
    return CHANGED_LOSS.replace("CHANGE", what).replace("AT", str(at))


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_finite_ends_the_run_before_it_changes_a_weight(
    server: Server, write_run: Write, dataset: Path, tmp_path: Path, value: str
) -> None:
    path = write_run(batch={"samples": 1}, train={"rows_per_step": 2})
    code, err = server.run("train", str(path), before=changing(f"loss * float('{value}')", 10))
    assert code == 1
    assert f"step 5: the loss is {value} and the gradient norm nan, at learning rate " in err
    told = err.split("in its row: ")[1].splitlines()[0]
    assert told.startswith(f"{dataset}:")
    assert "," not in told, "one of the step's two rows"
    assert f"go on with --resume from the last checkpoint, {tmp_path / 'run' / 'checkpoint-3'}" in err
    assert [folder.name for folder in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-3"]
    assert not (tmp_path / "run" / "final").exists()
    assert "Traceback" not in err


def test_a_gradient_that_is_not_finite_ends_the_run(server: Server, write_run: Write) -> None:
    # Its value is 1, its gradient infinite: sqrt at 0.
    change = "(loss * 0).sqrt() + 1"
    code, err = server.run("train", str(write_run()), before=changing(change, 2))
    assert code == 1
    assert "step 2: the loss is " in err
    assert "and the gradient norm nan" in err
    assert "then start again: there is no checkpoint yet" in err


def test_a_loss_that_jumps_is_said_with_its_samples(server: Server, write_run: Write, dataset: Path) -> None:
    path = write_run(batch={"samples": 1})
    code, err = server.run("train", str(path), before=changing("loss * 40", 12))
    assert code == 0, err
    lines = err.splitlines()
    (place,) = [number for number, line in enumerate(lines) if "jumped" in line]
    assert lines[place].startswith("step 12: the loss jumped to ")
    assert lines[place + 1].startswith(f"  its samples: {dataset}:")


def test_a_noisy_loss_is_no_jump() -> None:
    watch = SpikeWatch()
    assert not [value for value in (1.0, 1.4, 0.8, 1.1, 0.6, 1.5, 0.9, 1.2, 1.6, 0.7, 1.8) if watch.look(value)]
    assert watch.look(9.0) == pytest.approx(1.1)
    assert watch.look(9.5) is None, "said a moment ago"
    learned = SpikeWatch()
    assert not [value for value in (0.01, 0.012, 0.009, 0.011, 0.008, 0.01, 0.009, 0.012, 0.05) if learned.look(value)]
    assert learned.look(0.4) == pytest.approx(0.01), "a fifth of nothing is no jump, this is one"


OUT_OF_MEMORY = """
import torch, triptych.forward.row_forward as f
real, count = f.RowForward.losses, [0]
def limited(self, model, row):
    count[0] += 1
    loss, each = real(self, model, row)
    if count[0] > 3 and len(row.samples) > MOST:
        loss.backward() if model.training else None  # half of the gradients are there
        raise torch.OutOfMemoryError("CUDA out of memory")
    return loss, each
f.RowForward.losses = limited
"""


@pytest.mark.parametrize("rows", [1, 2])
def test_a_row_that_does_not_fit_is_split_and_training_goes_on(
    server: Server, write_run: Write, dataset: Path, tmp_path: Path, rows: int
) -> None:
    weighted = [{"path": str(dataset)}, {"path": str(dataset), "loss_weight": 0.5}]
    sources = {"eval": [{"path": str(dataset)}], "train": weighted, "workers": 0}
    path = write_run(data=sources)
    options = (f"train.rows_per_step={rows}",)
    code, err = server.run("train", str(path), *options, f"output={tmp_path / 'whole'}")
    assert code == 0, err
    code, err = server.run("train", str(path), *options, before=OUT_OF_MEMORY.replace("MOST", "1"))
    assert code == 0, err
    assert err.count("out of memory with a row of 2 samples") == 1, "said once"
    name = dataset.name
    for key in ("loss", "eval_loss", f"loss/{name}#1", f"share/{name}#1", f"loss/{name}#2", f"share/{name}#2"):
        expected, found = (dict(losses(tmp_path / name, key)) for name in ("whole", "run"))
        assert found == pytest.approx(expected, rel=1e-3)


def test_a_sample_that_does_not_fit_is_named_with_what_to_turn(server: Server, write_run: Write, dataset: Path) -> None:
    code, err = server.run("train", str(write_run()), before=OUT_OF_MEMORY.replace("MOST", "0"))
    assert code == 1
    assert "out of memory with a row of 1 samples, " in err
    assert f"{dataset}:" in err.split("out of memory with a row of 1")[1]
    assert "set train.gradient_checkpointing: true" in err
    assert "Traceback" not in err


LORA = {"train": "lora", "freeze": ["vision", "merger"], "lora": {"rank": 4}}
MIXED = {"train": "lora", "freeze": ["vision"], "full": ["merger"], "lora": {"rank": 4}}
WORSE = """
import triptych.training.trainer as t
real, values = t.RowTrainer.evaluation_loop, iter([3.0, 1.0, 2.0, 4.0])
def graded(self, *a, **k):
    found = real(self, *a, **k)
    found.metrics["eval_loss"] = next(values)
    return found
t.RowTrainer.evaluation_loop = graded
"""


@pytest.mark.parametrize(
    ("model", "every"), [({}, 2), (LORA, 2), (MIXED, 2), ({}, "epoch")], ids=["full", "lora", "mixed", "full-epochs"]
)
def test_the_best_model_is_the_final_one_to_the_bit(
    server: Server, write_run: Write, dataset: Path, tmp_path: Path, model: dict[str, Any], every: Any
) -> None:
    path = write_run(
        model=model,
        data={"eval": [{"path": str(dataset)}], "train": [{"path": str(dataset)}], "workers": 0},
        train={
            "save_every": every,
            "eval_every": every,
            "keep_checkpoints": 1,
            "epochs": 1 if every == 2 else 4,
            "hf": {"load_best_model_at_end": True, "metric_for_best_model": "loss"},
        },
    )
    code, err = server.run("train", str(path), before=WORSE)
    assert code == 0, err
    best = 4 if every == 2 else 16
    output = tmp_path / "run"
    assert f"the best model is that of {output / f'checkpoint-{best}'}" in err
    assert same(output / "final", output / f"checkpoint-{best}")
    state = json.loads((output / f"checkpoint-{best}" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(output / f"checkpoint-{best}")
