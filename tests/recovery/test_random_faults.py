"""Kills at random moments, and random damage to checkpoints and caches: nothing is lost, nothing is silent."""

from __future__ import annotations

import logging
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import tiny
from cli_server import Command, Server
from results import losses, same
from triptych.recovery import checkpoints
from triptych.recovery.output_folder import FINAL
from triptych.run.prepare import prepare
from triptych.run.reporter import LogReporter
from triptych.run.run_file import load

pytestmark = pytest.mark.slow

Write = Callable[..., Path]
KILLS = 20
SLOW_STEP = """
import time, triptych.forward.row_forward as f
real = f.RowForward.losses
f.RowForward.losses = lambda *a: (time.sleep(0.05), real(*a))[1]
"""


@pytest.mark.timeout(600)
def test_killed_at_random_moments_a_run_ends_as_if_undisturbed(
    server: Server, small_model_dir: Path, tmp_path: Path
) -> None:
    data = tiny.write_dataset(tmp_path, 24)
    options = ("batch.samples=1", "train.epochs=3", "train.save_every=1", "train.keep_checkpoints=2")
    path = tiny.write_run(tmp_path, small_model_dir, data)
    whole = tmp_path / "whole"
    code, err = server.run("train", str(path), *options, f"output={whole}")
    assert code == 0, err
    # A run may be over before it was killed twenty times: the next one then takes the rest of the kills.
    chance, outputs, kills, inside = random.Random(0), [tmp_path / "run-0"], 0, 0
    while kills < KILLS:
        output = outputs[-1]
        resume = ["--resume"] if checkpoints.found(output) else []
        command = server.start("train", str(path), *options, f"output={output}", *resume, before=SLOW_STEP)
        if kills % 5:
            command.until("steps\n")  # the others also at the start
        if killed(command, chance.uniform(0, 2.0)):
            kills += 1
            inside += any((output / checkpoints.UNFINISHED).glob("*"))
            faults = {folder.name: checkpoints.fault(folder) for _, folder in checkpoints.found(output)}
            assert not any(faults.values()), f"after kill {kills}: {faults}"
        if (output / FINAL).exists():
            assert losses(output) == losses(whole), f"{output.name}, over before kill {kills + 1}"
            assert same(output / FINAL, whole / FINAL)
            outputs.append(tmp_path / f"run-{len(outputs)}")
    output = outputs[-1]
    resume = ["--resume"] if checkpoints.found(output) else []
    code, err = server.run("train", str(path), *options, f"output={output}", *resume)
    assert code == 0, err
    assert losses(output) == losses(whole)
    assert same(output / FINAL, whole / FINAL)
    assert inside, "some of the kills came inside a checkpoint"
    assert len(outputs) <= KILLS / 2, "runs were killed and went on, most of them more than once"


def killed(command: Command, after: float) -> bool:
    """Kill it after some seconds; False if it was over before."""
    end = time.monotonic() + after
    while time.monotonic() < end and command.pid not in command.server.ended:
        command.server.look(end - time.monotonic())
    with suppress(ProcessLookupError):
        command.signal(signal.SIGKILL)
    code = command.wait()
    assert code in (0, -signal.SIGKILL), command.err
    return code != 0


def damage(path: Path, chance: random.Random) -> str:
    """Flip a bit of a file, cut it off, or remove it."""
    content = path.read_bytes()
    kind = chance.choice(["flip", "cut", "remove"]) if content else "remove"
    if kind == "flip":
        place = chance.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :])
    elif kind == "cut":
        path.write_bytes(content[: chance.randrange(len(content))])
    else:
        path.unlink()
    return kind


def test_damage_to_a_real_checkpoint_is_always_found(server: Server, write_run: Write, tmp_path: Path) -> None:
    path = write_run()
    code, err = server.run("train", str(path))
    assert code == 0, err
    folder = tmp_path / "run" / "checkpoint-6"
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    chance = random.Random(1)
    for trial in range(100):
        file = files[trial % len(files)]
        shutil.copy2(file, tmp_path / "kept")
        kind = damage(file, chance)
        found = checkpoints.fault(folder)
        assert found is not None, f"{kind} of {file.name} was not found"
        if kind == "flip" and file.name != checkpoints.MANIFEST:
            assert found.endswith(f"{file.name} is damaged: its checksum is not what was written")
        shutil.move(tmp_path / "kept", file)
        assert checkpoints.fault(folder) is None


def test_damage_to_the_cache_is_named_or_harmless(
    small_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("TRIPTYCH_CACHE", str(cache))
    settings = load(tiny.write_run(tmp_path, small_model_dir, tiny.write_dataset(tmp_path, 12)))

    def seen() -> list[np.ndarray]:
        corpus = prepare(settings, ("train",), LogReporter(), rejected=False).corpora["train"]
        sums = corpus.sums()
        lengths = corpus.lengths
        return [lengths.tokens, lengths.patches, corpus.supervised, sums.text, sums.images, sums.line]

    expected = seen()
    shutil.copytree(cache, tmp_path / "good")
    chance, named = random.Random(2), 0
    for trial in range(100):
        files = sorted(file for file in cache.rglob("*") if file.is_file() and file.suffix != ".lock")
        file = files[trial % len(files)]
        kind = damage(file, chance)
        with caplog.at_level(logging.WARNING, "triptych"):
            caplog.clear()
            found = seen()
        assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True)), (kind, file)
        named += "is damaged or incomplete: building it again" in caplog.text
        shutil.rmtree(cache)
        shutil.copytree(tmp_path / "good", cache)
    assert named > 20, "the others were harmless"
