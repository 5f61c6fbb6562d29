"""``triptych index``: read, tokenize and measure ahead of training, on this machine or on a Ray cluster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from triptych.compat.loading import open_for
from triptych.corpus.executor import Engine, LocalEngine
from triptych.errors import ConfigError
from triptych.run.prepare import SPLITS, prepare
from triptych.terminal import Terminal


def index(
    run: Path, overrides: Sequence[str], *, engine: Literal["local", "ray"], workers: int | None, address: str | None
) -> None:
    """Bring the caches up to date for a run file and print what was found.

    Raises:
        ConfigError: if the run file cannot be used or a data file is missing.
        DataError: with all problems, under ``data.on_error: stop``.
    """
    out = Terminal()
    settings = open_for(run, overrides, out).settings
    chosen = _engine(engine, workers, address)
    began = time.monotonic()
    prepared = prepare(settings, SPLITS, out, chosen, rejected=False)
    seconds = time.monotonic() - began
    samples = sum(report.samples for report in prepared.reports.values())
    out.line(f"indexed {samples:,} samples in {seconds:.1f} s")


def _engine(name: Literal["local", "ray"], workers: int | None, address: str | None) -> Engine:
    if name == "local":
        if address is not None:
            raise ConfigError("--address goes with --engine ray")
        return LocalEngine(workers)
    from triptych.corpus.ray_executor import RayEngine

    return RayEngine(workers, address)
