"""The output folder belongs to one run at a time, and to one run only: a lock, and what an earlier run left behind."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from triptych.errors import ConfigError
from triptych.family.folders import check_trained
from triptych.recovery import checkpoints, data_identity
from triptych.reports.answers import SHOWINGS
from triptych.reports.history import LOG
from triptych.reports.live import DATA, REPORT
from triptych.run.prepare import REJECTED, is_main_process
from triptych.run.settings import RunSettings

LOCK, OWNER = ".lock", ".owner.json"
FINAL = "final"
LEFTOVERS = (
    "run.yaml", LOG, "summary.json", "loss.png", "tensorboard", REPORT, DATA, SHOWINGS, REJECTED, data_identity.FILE,
    checkpoints.UNFINISHED,
)  # fmt: skip
"""What a run writes before its first checkpoint, and reports: cleared when another run starts there."""


@contextmanager
def claimed(output: Path) -> Iterator[None]:
    """Hold the output folder; the lock ends with the process, in whatever way that ends. Of several ranks one holds it.

    Raises:
        ConfigError: if another run holds it, naming host and process.
        OSError: if it cannot be written.
    """
    output.mkdir(parents=True, exist_ok=True)
    if not is_main_process():
        yield
        return
    lock = FileLock(output / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ConfigError(
            f"{output} is in use by another run ({_owner(output)}); wait for it, stop it, or choose another output"
        ) from None
    try:
        owner = {"host": platform.node(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        (output / OWNER).write_text(json.dumps(owner), encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            (output / OWNER).unlink(missing_ok=True)
        lock.release()


def make_room(output: Path) -> list[str]:
    """Prepare an output folder for a new run; returns the names of what an earlier one left and is now removed.

    Raises:
        ConfigError: if it holds checkpoints or a model, which nobody but the user removes.
    """
    there = [folder.name for _, folder in reversed(checkpoints.found(output))]
    there += [FINAL] if (output / FINAL).exists() else []
    if there:
        shown = ", ".join(there[:3]) + (", ..." if len(there) > 3 else "")
        raise ConfigError(
            f"{output} holds an earlier run ({shown}); go on with --resume, or choose another output, "
            "or remove the folder"
        )
    cleared = [name for name in LEFTOVERS if (output / name).exists()]
    if is_main_process():
        for name in cleared:
            path = output / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    return cleared


def _owner(output: Path) -> str:
    try:
        owner = json.loads((output / OWNER).read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "process unknown"


def model_to_evaluate(settings: RunSettings, checkpoint: str | Path | None) -> Path:
    """The model folder that is to answer a run's held-out samples.

    Raises:
        ConfigError: if the run names no held-out data, or there is no such folder.
    """
    if not settings.data.evaluates:
        raise ConfigError("data.eval names no source to evaluate on; name one, or set data.hold_out")
    folder = Path(checkpoint) if checkpoint is not None else Path(settings.output) / FINAL
    if not folder.is_dir() and checkpoint is None:
        raise ConfigError(f"no model folder {folder}; train first, or name the folder of a checkpoint")
    check_trained(folder)
    return folder
