"""SIGTERM, SIGINT and SIGHUP at every moment of a run: the step is finished and saved, or the run ends at once."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from cli_server import Server
from results import losses, same

Write = Callable[..., Path]

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}

SLOW_STEP = """
import time, triptych.forward.row_forward as f
real = f.RowForward.losses
def slow(self, model, row):
    if model.training:
        print("IN A STEP", file=sys.stderr, flush=True)
        time.sleep(0.3)
    return real(self, model, row)
f.RowForward.losses = slow
"""
SLOW_SAVE = """
import time, triptych.recovery.checkpoints as c
real = c.Seal.close
def slow(self):
    print("SAVING", file=sys.stderr, flush=True)
    time.sleep(0.6)
    return real(self)
c.Seal.close = slow
"""
SLOW_EVALUATION = """
import time, triptych.forward.row_forward as f
real = f.RowForward.losses
def slow(self, model, row):
    if not model.training:
        print("EVALUATING", file=sys.stderr, flush=True)
        time.sleep(0.2)
    return real(self, model, row)
f.RowForward.losses = slow
"""


@pytest.fixture(scope="module")
def whole(server: Server, small_model_dir: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run that evaluates every second step and saves every third."""
    folder = tmp_path_factory.mktemp("whole")
    code, err = server.run("train", str(write(folder, small_model_dir, dataset)))
    assert code == 0, err
    return folder / "run"


def write(folder: Path, model: Path, dataset: Path) -> Path:
    train = {"save_every": 3, "eval_every": 2, "keep_checkpoints": None}
    data = {"eval": [{"path": str(dataset)}], "train": [{"path": str(dataset)}], "workers": 0}
    return tiny.write_run(folder, model, dataset, batch={"samples": 2}, train=train, data=data)


@pytest.fixture
def path(small_model_dir: Path, dataset: Path, tmp_path: Path) -> Path:
    return write(tmp_path, small_model_dir, dataset)


def is_as_if_never_stopped(server: Server, path: Path, whole: Path) -> None:
    code, err = server.run("train", str(path), "--resume")
    assert code == 0, err
    output = path.parent / "run"
    assert losses(output) == losses(whole)
    assert losses(output, "eval_loss") == losses(whole, "eval_loss")
    assert same(output / "final", whole / "final")


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_signal_within_a_step_finishes_it_and_saves(
    server: Server, path: Path, whole: Path, number: signal.Signals
) -> None:
    command = server.start("train", str(path), before=f"import sys\n{SLOW_STEP}")
    command.until("\n1/8")
    command.until("IN A STEP")
    command.signal(number)
    assert command.wait() == CODES[number], command.err
    assert f"triptych: {number.name}: finishing this step, then saving a checkpoint" in command.err
    step = losses(path.parent / "run")[-1][0]
    saved = path.parent / "run" / f"checkpoint-{step}"
    assert f"triptych: stopped after step {step}; saved in {saved}, go on with --resume" in command.err
    assert saved.is_dir()
    assert "Traceback" not in command.err
    is_as_if_never_stopped(server, path, whole)


@pytest.mark.parametrize(
    ("hook", "moment"), [(SLOW_SAVE, "SAVING"), (SLOW_EVALUATION, "EVALUATING")], ids=["saving", "evaluating"]
)
def test_a_signal_while_saving_or_evaluating_lets_it_finish(
    server: Server, path: Path, whole: Path, hook: str, moment: str
) -> None:
    command = server.start("train", str(path), before=f"import sys\n{hook}")
    command.until(moment)
    command.signal(signal.SIGTERM)
    assert command.wait() == 143, command.err
    assert "Traceback" not in command.err
    is_as_if_never_stopped(server, path, whole)


@pytest.mark.parametrize(
    ("hook", "moment"), [(SLOW_STEP, "IN A STEP"), (SLOW_SAVE, "SAVING")], ids=["in a step", "saving"]
)
def test_a_second_signal_ends_the_run_at_once(server: Server, path: Path, whole: Path, hook: str, moment: str) -> None:
    slower = hook.replace("time.sleep(0.3)", "time.sleep(20)").replace("time.sleep(0.6)", "time.sleep(20)")
    command = server.start("train", str(path), before=f"import sys\n{slower}")
    command.until(moment)
    command.signal(signal.SIGINT)
    command.until("a second signal ends it at once")
    began = time.monotonic()
    command.signal(signal.SIGINT)
    assert command.wait() == -signal.SIGINT
    assert time.monotonic() - began < 5
    assert not list((path.parent / "run").glob("checkpoint-*")), "what was being written is not a checkpoint"
    code, err = server.run("train", str(path))
    assert code == 0, err
    assert same(path.parent / "run" / "final", whole / "final")


SLOW_START = {
    "reading": "import triptych.recovery.start as m\nreal = m.prepare\n",
    "loading": "import triptych.training.train as m\nreal = m.load_for_training\n",
    "features": "import triptych.training.train as m\nreal = m.open_features\n",
}


@pytest.mark.parametrize(("moment", "number"), list(zip(SLOW_START, CODES, strict=True)), ids=SLOW_START)
def test_a_signal_before_the_first_step_ends_the_start(
    server: Server, path: Path, moment: str, number: signal.Signals
) -> None:
    hook = SLOW_START[moment]
    name = hook.split("real = m.")[1].strip()
    hook += "import sys, time\n"
    hook += (
        f"def slow(*a, **k):\n    print('STARTING', file=sys.stderr, flush=True)\n    time.sleep(30)\nm.{name} = slow\n"
    )
    command = server.start("train", str(path), before=hook)
    command.until("STARTING")
    command.signal(number)
    assert command.wait(20) == CODES[number], command.err
    assert f"{number.name}: stopping before the first step" in command.err
    assert "stopped before the first step; nothing is lost" in command.err
    assert "Traceback" not in command.err


@pytest.mark.parametrize(("number", "delay"), [(signal.SIGINT, 0.05), (signal.SIGTERM, 0.7), (signal.SIGINT, 3.0)])
def test_a_fresh_process_stops_at_any_moment_without_a_traceback(
    path: Path, number: signal.Signals, delay: float
) -> None:
    default = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # a job in the background ignores it
    program = f"import signal, sys\n{default}\nfrom triptych.cli import main\nsys.stderr.write('GO\\n')\nmain()"
    command = [sys.executable, "-c", program, "train", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "GO\n"
        time.sleep(delay)
        process.send_signal(number)
        err = process.stderr.read()
    assert process.returncode in (CODES[number], -number), err
    assert "Traceback" not in err
    assert "Aborted" not in err


def test_a_signal_after_the_last_step_changes_nothing(server: Server, path: Path, whole: Path) -> None:
    hook = "import sys\n" + SLOW_SAVE.replace("SAVING", "SAVING {self.folder.name}").replace('print("', 'print(f"')
    command = server.start("train", str(path), before=hook)
    command.until("SAVING final")
    command.signal(signal.SIGTERM)
    assert command.wait() == 0, command.err
    assert "training is over, finishing the last files" in command.err
    assert same(path.parent / "run" / "final", whole / "final")


def test_nohup_keeps_a_run_alive(server: Server, path: Path) -> None:
    hook = f"import sys, signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n{SLOW_STEP}"
    command = server.start("train", str(path), before=hook)
    command.until("IN A STEP")
    command.signal(signal.SIGHUP)
    assert command.wait() == 0, command.err
    shutil.rmtree(path.parent / "run")
