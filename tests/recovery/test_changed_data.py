"""Going on over samples or files that are not what they were: each is named, and nothing starts from a fresh state."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from cli_server import Server
from results import losses, same

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def made(server: Server, small_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, run file and a finished run of four steps; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    code, err = server.run("train", str(write(folder, small_model_dir)))
    assert code == 0, err
    return folder


def write(folder: Path, model: Path, **data: Any) -> Path:
    settings = {"batch": {"samples": 2}, "train": {"save_every": 2, "keep_checkpoints": None}, "data": data}
    return tiny.write_run(folder, model, tiny.write_dataset(folder, 8), **settings)


@pytest.fixture
def stopped(made: Path, tmp_path: Path) -> Path:
    """The run file of a copy that looks as if it had been killed in its third step, beside its data."""
    shutil.copytree(made / "run", tmp_path / "run")
    for later in ("checkpoint-4", "final"):
        shutil.rmtree(tmp_path / "run" / later)
    for name in ("train.json", "images"):
        copy = shutil.copytree if (made / name).is_dir() else shutil.copy2
        copy(made / name, tmp_path / name)
    settings = json.loads((made / "run.yaml").read_text())
    settings["data"]["train"][0]["path"] = str(tmp_path / "train.json")
    settings["output"] = str(tmp_path / "run")
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(settings))
    return path


def edit(data: Path, change: Callable[[list[Any]], object]) -> None:
    records = json.loads(data.read_text())
    change(records)
    data.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")


def test_a_moved_copy_of_the_data_is_the_same_data(server: Server, made: Path, stopped: Path) -> None:
    code, err = server.run("train", str(stopped), "--resume")
    assert code == 0, err
    assert losses(stopped.parent / "run") == losses(made / "run")
    assert same(stopped.parent / "run" / "final", made / "run" / "final")


def test_samples_that_are_gone_or_new_are_refused(server: Server, stopped: Path) -> None:
    data = stopped.parent / "train.json"
    edit(data, lambda records: records.pop())
    code, err = server.run("train", str(stopped), "--resume")
    assert code == 1
    assert "the samples are not those that" in err
    assert "train.json:8 is gone" in err
    edit(data, lambda records: records.extend([tiny.record([], f"Which of {n}?", "One.") for n in range(3)]))
    code, err = server.run("train", str(stopped), "--resume")
    assert code == 1
    assert "2 samples are new" in err
    assert "train.json:8: its text changed" in err
    assert "Traceback" not in err


def test_samples_that_came_are_not_taken_under_skip(server: Server, made: Path, stopped: Path) -> None:
    edit(stopped.parent / "train.json", lambda records: records.append(tiny.record([], "Which?", "One.")))
    code, err = server.run("train", str(stopped), "--resume", "data.on_error=skip")
    assert code == 0, err
    assert "1 samples came since the run was started; it does not take them" in err
    assert losses(stopped.parent / "run") == losses(made / "run"), "by the plan of its first start"
    assert same(stopped.parent / "run" / "final", made / "run" / "final")


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_without_the_list_of_samples_other_data_are_still_refused(server: Server, stopped: Path, damage: str) -> None:
    known = stopped.parent / "run" / "samples.npz"
    known.unlink() if damage == "missing" else known.write_bytes(known.read_bytes()[:200])
    data = stopped.parent / "train.json"
    before = data.read_text()
    edit(data, lambda records: records.pop())
    code, err = server.run("train", str(stopped), "--resume")
    assert code == 1
    assert f"{known}, which would tell the difference, is missing or of another run" in err
    data.write_text(before)
    code, err = server.run("train", str(stopped), "--resume")
    assert code == 0, err
    assert set(np.load(known).files) >= {"about", "text"}, "written again"


@pytest.mark.parametrize(
    ("name", "content"),
    [("scheduler.pt", None), ("rng_state.pth", None), ("trainer_state.json", b'{"global_step": '), ("run.yaml", b"")],
)
def test_a_state_that_is_missing_or_half_written_is_never_begun_afresh(
    server: Server, made: Path, stopped: Path, name: str, content: bytes | None
) -> None:
    output = stopped.parent / "run"
    shutil.copytree(made / "run" / "checkpoint-4", output / "checkpoint-4")
    path = output / "checkpoint-4" / name
    path.unlink() if content is None else path.write_bytes(content)
    code, err = server.run("train", str(stopped), "--resume")
    assert code == 0, err
    assert f"damaged, not used: {output / 'checkpoint-4'}: {name} " in err
    assert f"resuming from {output / 'checkpoint-2'}" in err
    assert losses(output) == losses(made / "run")


def test_a_damaged_final_model_is_made_again(server: Server, made: Path, stopped: Path) -> None:
    final = shutil.copytree(made / "run" / "final", stopped.parent / "run" / "final")
    weights = final / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, err = server.run("train", str(stopped), "--resume")
    assert code == 0, err
    assert f"damaged, made again from the last checkpoint: {final}: model.safetensors is damaged" in err
    assert same(final, made / "run" / "final")


def test_another_precision_of_this_machine_is_refused(server: Server, stopped: Path) -> None:
    other = "import torch, triptych.training.context as c\nc.choose_precision = lambda _: torch.bfloat16\n"
    code, err = server.run("train", str(stopped), "--resume", before=other)
    assert code == 1
    assert "was trained in float32, and model.precision gives bfloat16 here; set model.precision: float32" in err
