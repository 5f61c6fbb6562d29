"""Run a command and see how much memory all its processes take together."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

INTERVAL = 0.25
"""Seconds between two looks at the memory."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a command went."""

    began: float
    """When it was started, on ``time.monotonic``'s clock"""
    seconds: float
    code: int | None
    """Its status; None if it was ended for taking too long."""
    peak_bytes: int
    """Largest proportional set size of the process and all below it"""


def run(command: Sequence[str], output: Path, environment: Mapping[str, str], limit: float) -> Finished:
    """Run ``command`` and everything that it starts, to its end or for ``limit`` seconds.

    Args:
        command: program and arguments.
        output: file for what it prints.
        environment: variables beside those of this process.
        limit: seconds after which it is ended.
    """
    peak = 0
    with output.open("w", encoding="utf-8") as file:
        began = time.monotonic()
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        try:
            while process.poll() is None and time.monotonic() - began < limit:
                peak = max(peak, tree_memory(process.pid))
                with suppress(subprocess.TimeoutExpired):
                    process.wait(INTERVAL)
            seconds, code = time.monotonic() - began, process.poll()
        finally:
            # A run that ends itself at its first step leaves the processes that decode for it.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Finished(began, seconds, code, peak)


def tree_memory(pid: int) -> int:
    """Proportional set sizes of a process and all below it, bytes: shared pages count once."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            total += _proportional(process.pid)
    return total


def _proportional(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
