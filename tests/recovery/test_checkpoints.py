"""A checkpoint is whole or it is named: every damage is found, and what was being written counts for nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from triptych.recovery import checkpoints


def write(output: Path, step: int) -> Path:
    folder = checkpoints.aside(output, f"checkpoint-{step}")
    seal = checkpoints.Seal(folder)
    (folder / "weights").write_bytes(np.random.default_rng(step).bytes(5000))
    seal.add()
    (folder / "inner").mkdir()
    (folder / "inner" / "state.json").write_text('{"a": 1}')
    (folder / "empty").touch()
    seal.close()
    target = output / f"checkpoint-{step}"
    checkpoints.publish(folder, target)
    return target


def test_a_whole_checkpoint_has_no_fault(tmp_path: Path) -> None:
    assert checkpoints.fault(write(tmp_path, 1)) is None
    assert write(tmp_path, 12) == checkpoints.last_good(tmp_path)[0]


def test_every_flip_truncation_and_deletion_is_found(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    random = np.random.default_rng(0)
    files = [path for path in folder.rglob("*") if path.is_file()]
    for trial in range(200):
        path = files[trial % len(files)]
        content = path.read_bytes()
        kind = random.choice(["flip", "cut", "gone"]) if content else "gone"
        if kind == "flip":
            place = int(random.integers(len(content)))
            bit = 1 << int(random.integers(8))
            path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        elif kind == "cut":
            path.write_bytes(content[: int(random.integers(len(content)))])
        else:
            path.unlink()
        found = checkpoints.fault(folder)
        assert found is not None, (kind, path)
        assert path.name in found or "manifest.json" in found or path.name == "manifest.json", found
        path.write_bytes(content)
        assert checkpoints.fault(folder) is None


def test_the_newest_whole_one_is_taken_and_newer_ones_are_named(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        write(tmp_path, step)
    (tmp_path / "checkpoint-10" / "weights").unlink()
    (tmp_path / "checkpoint-11").mkdir()
    (tmp_path / "checkpoint-x").mkdir()
    found, faults = checkpoints.last_good(tmp_path)
    assert found == tmp_path / "checkpoint-9"
    assert faults == [
        f"{tmp_path / 'checkpoint-11'}: manifest.json is missing",
        f"{tmp_path / 'checkpoint-10'}: weights is missing",
    ]


def test_old_ones_are_removed_but_for_the_best(tmp_path: Path) -> None:
    folders = {step: write(tmp_path, step) for step in (1, 2, 3, 4)}
    checkpoints.remove_old(tmp_path, 2, folders[1])
    assert [step for step, _ in checkpoints.found(tmp_path)] == [4, 3, 1]
    checkpoints.remove_old(tmp_path, None, None)
    assert len(checkpoints.found(tmp_path)) == 3


@pytest.mark.parametrize("left", ["checkpoint-7", "final"])
def test_what_was_being_written_counts_for_nothing(tmp_path: Path, left: str) -> None:
    write(tmp_path, 3)
    (checkpoints.aside(tmp_path, left) / "weights").write_text("half")
    assert checkpoints.last_good(tmp_path) == (tmp_path / "checkpoint-3", [])
    checkpoints.clear_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]
