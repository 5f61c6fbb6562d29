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
    from triptych.compat.loading import open_for
    from triptych.recovery.resume import FinishedError
    from triptych.recovery.start import starting
    from triptych.terminal import Terminal

    out = Terminal()
    opened = open_for(run, overrides, out)
    settings, given = opened.settings, opened.overrides
    resume = resume or (opened.goes_on and _can_go_on(Path(settings.output)))
    try:
        with starting(settings, out, resuming=resume, overrides=given, stop=stop) as (settings, prepared, start):
            # torch and transformers take seconds to import: only now that the data is known to be right.
            from triptych.training.train import train as run_training

            stop.check()
            final = run_training(settings, prepared, out, start=start)
    except FinishedError as finished:
        out.line(str(finished))
        return 0
    out.line(f"model: {final}")
    return 0


def _can_go_on(output: Path) -> bool:
    """Whether the output folder holds a checkpoint of Triptych's; those of other tools are no start for it."""
    from triptych.recovery import checkpoints
    from triptych.recovery.resume import RUN_FILE

    return any((folder / RUN_FILE).exists() for _, folder in checkpoints.found(output))
