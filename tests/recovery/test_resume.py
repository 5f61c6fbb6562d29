"""Going on after a stop: what is checked, what is said, and that nothing is lost, through the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import tiny
from cli_server import Server
from results import losses, same

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def whole(server: Server, small_model_dir: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    train = {"save_every": 3, "keep_checkpoints": None}
    path = tiny.write_run(folder, small_model_dir, dataset, batch={"samples": 2}, train=train)
    code, err = server.run("train", str(path), "train.learning_rate=2e-3")
    assert code == 0, err
    return folder / "run"


@pytest.fixture
def stopped(whole: Path, tmp_path: Path) -> Path:
    """The same output as if it had been killed in its seventh step."""
    shutil.copytree(whole, tmp_path / "run")
    for later in ("checkpoint-8", "final"):
        shutil.rmtree(tmp_path / "run" / later)
    return tmp_path / "run"


def test_overrides_of_the_first_start_are_kept_and_the_run_is_as_if_never_stopped(
    server: Server, write_run: Write, whole: Path, stopped: Path
) -> None:
    code, err = server.run("train", str(write_run()), "--resume")
    assert code == 0, err
    assert "kept from the first start: train.learning_rate=0.002" in err
    assert losses(stopped) == losses(whole)
    assert same(stopped / "final", whole / "final")
    assert yaml.safe_load((stopped / "run.yaml").read_text())["train"]["learning_rate"] == 2e-3


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    server: Server, write_run: Write, whole: Path, stopped: Path
) -> None:
    (stopped / "checkpoint-6" / "optimizer.pt").unlink()
    code, err = server.run("train", str(write_run()), "--resume")
    assert code == 0, err
    assert f"damaged, not used: {stopped / 'checkpoint-6'}: optimizer.pt is missing" in err
    assert f"resuming from {stopped / 'checkpoint-3'}" in err
    assert losses(stopped) == losses(whole)
    assert same(stopped / "final", whole / "final")


def test_no_whole_checkpoint_is_an_error_that_names_each(server: Server, write_run: Write, stopped: Path) -> None:
    for number in (3, 6):
        path = stopped / f"checkpoint-{number}" / "trainer_state.json"
        path.write_text(path.read_text()[:100])
    code, err = server.run("train", str(write_run()), "--resume")
    assert code == 1
    assert "no checkpoint in" in err
    assert err.count("trainer_state.json has 100 bytes instead of") >= 2
    assert "Traceback" not in err


def test_a_finished_run_says_so(server: Server, write_run: Write, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    code, err = server.run("train", str(write_run()), "--resume")
    assert code == 0
    assert f"the run in {tmp_path / 'run'} is finished" in err


def test_nothing_to_resume_is_an_error(server: Server, write_run: Write, tmp_path: Path) -> None:
    code, err = server.run("train", str(write_run()), "--resume")
    assert code == 1
    assert f"--resume: {tmp_path / 'run'} holds no checkpoint to go on from; start without --resume" in err


def test_an_earlier_model_is_not_mixed_with_a_new_run(server: Server, write_run: Write, stopped: Path) -> None:
    code, err = server.run("train", str(write_run()))
    assert code == 1
    assert f"{stopped} holds an earlier run (checkpoint-3, checkpoint-6)" in err


def test_reports_of_a_run_without_checkpoints_are_removed(server: Server, write_run: Write, tmp_path: Path) -> None:
    (tmp_path / "run" / "tensorboard").mkdir(parents=True)
    (tmp_path / "run" / "tensorboard" / "events").write_text("old")
    (tmp_path / "run" / "summary.json").write_text("{}")
    code, err = server.run("train", str(write_run()), "train.save_every=100")
    assert code == 0, err
    assert "removed what an earlier run left in" in err
    assert not (tmp_path / "run" / "tensorboard" / "events").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.learning_rate=1e-3", "changed since the checkpoint: train.learning_rate: 0.002 -> 0.001"),
        ("train.weight_decay=0.1", "changed since the checkpoint: train.weight_decay: 0 -> 0.1"),
        ("train.log_every=2", "changed since the checkpoint: train.log_every: 1 -> 2"),
    ],
)
def test_a_setting_that_may_change_is_applied_and_said(
    server: Server, write_run: Write, whole: Path, stopped: Path, override: str, said: str
) -> None:
    code, err = server.run("train", str(write_run()), "--resume", override)
    assert code == 0, err
    assert said in err
    key, value = override.split("=")
    written = yaml.safe_load((stopped / "run.yaml").read_text())["train"][key.split(".")[1]]
    assert float(written) == float(value)
    if "log_every" not in key:
        assert losses(stopped)[:7] == losses(whole)[:7]
        assert not same(stopped / "final", whole / "final")
    if "learning_rate" in key:
        before, after = (
            [json.loads(line) for line in (o / "log.jsonl").read_text().splitlines()] for o in (whole, stopped)
        )
        assert after[6]["learning_rate"] == pytest.approx(before[6]["learning_rate"] / 2)
        notes = json.loads((stopped / "final" / "triptych.json").read_text())["changes"]
        assert notes[0] == {"step": 6, "setting": "train.learning_rate", "old": 0.002, "new": 0.001}


def test_refused_settings_are_named_together_and_nothing_is_written(
    server: Server, write_run: Write, stopped: Path
) -> None:
    before = (stopped / "run.yaml").read_bytes()
    code, err = server.run("train", str(write_run()), "--resume", "train.seed=7", "train.epochs=2", "batch.samples=1")
    assert code == 1
    assert f"these settings cannot change between {stopped / 'checkpoint-6'} and --resume:" in err
    for said in ("train.seed: 42 -> 7", "train.epochs: 1 -> 2", "batch.samples: 2 -> 1"):
        assert said in err
    assert (stopped / "run.yaml").read_bytes() == before


def test_an_answer_edited_to_equal_length_is_refused(server: Server, write_run: Write, tmp_path: Path) -> None:
    data = tiny.write_dataset(tmp_path, 8)
    path = write_run(data)
    code, err = server.run("train", str(path))
    assert code == 0, err
    shutil.rmtree(tmp_path / "run" / "final")
    records: list[dict[str, Any]] = json.loads(data.read_text())
    records[4]["conversations"][-1]["value"] = records[4]["conversations"][-1]["value"][::-1]
    data.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    code, err = server.run("train", str(path), "--resume")
    assert code == 1
    assert f"{data}:5: its text changed" in err


def test_an_image_edited_in_place_is_refused(server: Server, write_run: Write, tmp_path: Path) -> None:
    data = tiny.write_dataset(tmp_path, 8)
    path = write_run(data)
    code, err = server.run("train", str(path))
    assert code == 0, err
    shutil.rmtree(tmp_path / "run" / "final")
    image = sorted((tmp_path / "images").iterdir())[0]
    image.write_bytes(image.read_bytes())  # another time
    code, err = server.run("train", str(path), "--resume")
    assert code == 1
    assert f"{data}:{int(image.name.split('-')[1]) + 1}: its images changed" in err


def test_a_sample_that_vanished_is_lost_and_the_run_goes_on_by_its_own_plan(
    server: Server, write_run: Write, tmp_path: Path
) -> None:
    data = tiny.write_dataset(tmp_path, 16)
    path = write_run(data, data={"on_error": "skip"})
    code, err = server.run("train", str(path))
    assert code == 0, err
    output = tmp_path / "run"
    before = losses(output)
    for later in ("checkpoint-6", "checkpoint-8", "final"):
        shutil.rmtree(output / later)
    image = sorted((tmp_path / "images").iterdir())[0]
    image.unlink()
    origin = f"{data}:{int(image.name.split('-')[1]) + 1}"
    code, err = server.run("train", str(path), "--resume")
    assert code == 0, err
    assert "1 samples vanished since the run was started" in err
    assert [step for step, _ in losses(output)] == [step for step, _ in before], "as many steps"
    assert losses(output)[:3] == before[:3]
    entries = [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]
    assert [(entry["origin"], entry["step"], entry["code"]) for entry in entries] == [(origin, 3, "image-missing")]
    assert json.loads((output / "summary.json").read_text())["lost_samples"] == 1
    # Once more, from the later checkpoint: the report is of the whole run, and names it once.
    for later in ("checkpoint-8", "final"):
        shutil.rmtree(output / later)
    after = losses(output)
    code, err = server.run("train", str(path), "--resume")
    assert code == 0, err
    assert losses(output) == after
    entries = [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]
    assert [entry["origin"] for entry in entries] == [origin]


def test_two_runs_in_one_output_are_refused_and_a_killed_one_leaves_no_lock(
    server: Server, write_run: Write, tmp_path: Path
) -> None:
    path = write_run()
    slow = "import triptych.forward.row_forward as f, time\n"
    slow += "real = f.RowForward.losses\n"
    slow += "f.RowForward.losses = lambda *a: (time.sleep(0.5), real(*a))[1]\n"
    first = server.start("train", str(path), before=slow)
    first.until("\n1/8")
    code, err = server.run("train", str(path))
    assert code == 1
    assert f"{tmp_path / 'run'} is in use by another run (process {first.pid} on " in err
    first.until("\n4/8")
    first.signal(9)
    assert first.wait() == -9
    code, err = server.run("train", str(path), "--resume")
    assert code == 0, err
