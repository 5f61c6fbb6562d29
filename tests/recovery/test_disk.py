"""Disks that are full, read-only, or not there: one sentence with the remedy, and nothing written is damaged."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli_server import Server
from results import losses, same
from triptych.recovery import checkpoints, resources

Write = Callable[..., Path]
Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a small disk in memory, and takes it away at the end."""
    mounted: list[Path] = []

    def do(name: str, options: str, *, again: bool = False) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        flags = f"remount,{options}" if again else options
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", flags, "tmpfs", folder], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("disks cannot be mounted here")
        if not again:
            mounted.append(folder)
        return folder

    yield do
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=False)


def last_line(err: str) -> str:
    assert "Traceback" not in err
    return err.splitlines()[-1]


def test_a_disk_that_is_full_at_a_checkpoint(server: Server, write_run: Write, tmp_path: Path, mount: Mount) -> None:
    output = mount("small", "size=16m")
    path = write_run()
    code, err = server.run("train", str(path), f"output={output}")
    assert code == 1
    line = last_line(err)
    assert f"{output / '.unfinished' / 'checkpoint-6'}" in line
    assert ": no space is left on the disk (" in line
    assert " MB free, about 10.8 MB needed); make room there or choose another `output`, " in line
    assert f"then go on with --resume from the last checkpoint, {output / 'checkpoint-3'}" in line
    assert checkpoints.fault(output / "checkpoint-3") is None
    assert [folder.name for folder in output.glob("*/checkpoint-*")] == [], "room for what comes"
    code, err = server.run("train", str(path), f"output={tmp_path / 'whole'}")
    assert code == 0, err
    mount("small", "size=64m", again=True)
    code, err = server.run("train", str(path), f"output={output}", "--resume")
    assert code == 0, err
    assert losses(output) == losses(tmp_path / "whole")
    assert same(output / "final", tmp_path / "whole" / "final")


def test_a_disk_too_small_for_any_checkpoint(server: Server, write_run: Write, mount: Mount) -> None:
    output = mount("small", "size=6m")
    code, err = server.run("train", str(write_run()), f"output={output}")
    assert code == 1
    assert "no space is left on the disk (" in last_line(err)
    assert "then start again: there is no checkpoint yet" in last_line(err)


def test_a_limit_on_the_size_of_files(server: Server, write_run: Write) -> None:
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))"
    code, err = server.run("train", str(write_run()), before=limit)
    assert code == 1
    assert "the file is larger than the limit on files allows" in last_line(err)


def test_an_output_that_is_read_only(server: Server, write_run: Write, mount: Mount) -> None:
    output = mount("locked", "size=1m,ro")
    code, err = server.run("train", str(write_run()), f"output={output}")
    assert code == 1
    assert last_line(err).startswith(f"triptych: {output}")
    assert "the disk is read-only" in last_line(err)
    assert "choose another `output`" in last_line(err)


@pytest.mark.parametrize("below", ["", "/run"])
def test_a_file_where_the_output_should_be(server: Server, write_run: Write, tmp_path: Path, below: str) -> None:
    (tmp_path / "taken").write_text("a file")
    code, err = server.run("train", str(write_run()), f"output={tmp_path}/taken{below}")
    assert code == 1
    assert "a file is where a folder should be" in last_line(err)
    assert f"{tmp_path}/taken" in last_line(err)
    assert (tmp_path / "taken").read_text() == "a file"


@pytest.mark.parametrize(
    ("options", "said"), [("size=32k", "no space is left|disk is full"), ("size=1m,ro", "the disk is read-only")]
)
def test_a_cache_that_is_full_or_read_only(
    server: Server, write_run: Write, mount: Mount, options: str, said: str
) -> None:
    cache = mount("cache", options)
    code, err = server.run("train", str(write_run()), env={"TRIPTYCH_CACHE": str(cache)})
    assert code == 1
    assert re.search(said, last_line(err)), "in the words of the system or of SQLite"
    assert str(cache) in last_line(err)
    assert "TRIPTYCH_CACHE" in last_line(err)


def test_a_file_where_the_cache_should_be(server: Server, write_run: Write, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    code, err = server.run("train", str(write_run()), env={"TRIPTYCH_CACHE": str(tmp_path / "cache")})
    assert code == 1
    assert "a file is where a folder should be" in last_line(err)
    assert "set TRIPTYCH_CACHE to another folder" in last_line(err)


def test_a_full_feature_store_never_ends_training(
    server: Server, write_run: Write, tmp_path: Path, mount: Mount
) -> None:
    mount("cache/features", "size=12k")
    path = write_run(model={"freeze": ["vision", "merger"]}, train={"epochs": 2})
    code, err = server.run("train", str(path), env={"TRIPTYCH_CACHE": str(tmp_path / "cache")})
    assert code == 0, err
    assert "feature cache off" in err or "not (" in err


FAILING = {
    "log": "import triptych.training.watch.trackers as c\nclass_, name = c.RunLogCallback, 'on_log'\n",
    "tensorboard": ("import torch.utils.tensorboard as t\nclass_, name = t.SummaryWriter, 'add_scalar'\n"),
}


@pytest.mark.parametrize("which", FAILING)
def test_a_log_or_tracker_that_fails_never_ends_training(server: Server, write_run: Write, which: str) -> None:
    hook = FAILING[which] + "def fail(*a, **k):\n    raise OSError(28, 'No space left on device')\n"
    hook += "setattr(class_, name, fail)\n"
    code, err = server.run("train", str(write_run()), before=hook)
    assert code == 0, err
    assert err.count("and is left out; training goes on") == 1
    assert "No space left on device" in err


def test_a_full_temporary_folder_is_not_needed(server: Server, write_run: Write, mount: Mount) -> None:
    folder = mount("temporary", "size=4k")
    code, err = server.run("train", str(write_run()), env={"TMPDIR": str(folder)})
    assert code == 0, err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory: set train.gradient_checkpointing: true"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), "set TMPDIR"),
        (OSError(122, "Disk quota exceeded", "/data/x"), "/data/x: the disk quota is used up"),
        (PermissionError(13, "Permission denied", "/data/x"), "/data/x: there is no permission to write"),
        (RuntimeError("another thing"), None),
        (FileNotFoundError(2, "No such file", "x"), None),
    ],
)
def test_errors_that_are_no_defects_of_the_program(tmp_path: Path, error: Any, said: str | None) -> None:
    found = resources.explain(error, tmp_path)
    assert found is None if said is None else said in str(found)
