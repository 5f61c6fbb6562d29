"""``triptych cache`` shows what is kept, and removes what was not used for a while."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

import tiny
from triptych.commands.environment import cache, entries
from triptych.run.prepare import prepare
from triptych.run.run_file import load
from triptych.terminal import Terminal


def age(folder: Path, days: float) -> None:
    moment = time.time() - days * 24 * 3600
    for path in folder.rglob("*"):
        os.utime(path, (moment, moment))


def test_what_was_not_used_is_removed_and_made_again(
    small_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setenv("TRIPTYCH_CACHE", str(folder))
    cache()  # nothing is there yet
    names = ("one", "two")
    runs = []
    for name in names:
        (tmp_path / name).mkdir()
        data = tiny.write_dataset(tmp_path / name, 4)
        runs.append(load(tiny.write_run(tmp_path / name, small_model_dir, data)))
        prepare(runs[-1], ("train",), Terminal())
    assert len(list(entries(folder / "index"))) == 2
    age(folder, 40)
    prepare(runs[0], ("train",), Terminal())  # uses its own again
    capsys.readouterr()
    cache(prune=30)
    shown = capsys.readouterr()
    assert "not used for 30 days" in shown.out + shown.err
    assert len(list(entries(folder / "index"))) == 1
    for run in runs:
        assert prepare(run, ("train",), Terminal()).reports["train"].ok == 4
