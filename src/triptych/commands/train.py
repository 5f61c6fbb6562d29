"""``triptych train``: check, index, plan and train; a signal ends it in good order."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from triptych.recovery import stopping


def train(run: Path, overrides: Sequence[str], *, resume: bool) -> int:
    """Train, or go on; returns the exit status.

    Raises:
        TriptychError: for everything that is the user's to fix.
    """
    with stopping.listening() as stop:
        try:
            return _train(run, overrides, stop, resume=resume)
        except stopping.Stopped as stopped:
            sys.stderr.write(f"triptych: {stopped}\n")
            return stopped.code


def _train(run: Path, overrides: Sequence[str], stop: stopping.Stop, *, resume: bool) -> int:
    from triptych.recovery.resume import FinishedError
    from triptych.recovery.start import starting
    from triptych.run import run_file
    from triptych.terminal import Terminal

    out = Terminal()
    settings = run_file.load(run, overrides)
    try:
        with starting(settings, out, resuming=resume, overrides=overrides, stop=stop) as (settings, prepared, start):
            # torch and transformers take seconds to import: only now that the data is known to be right.
            from triptych.training.train import train as run_training

            stop.check()
            final = run_training(settings, prepared, out, start=start)
    except FinishedError as finished:
        out.line(str(finished))
        return 0
    out.line(f"model: {final}")
    return 0
