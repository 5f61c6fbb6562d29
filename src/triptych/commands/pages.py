"""The commands that write pages: ``triptych eval``, ``inspect`` and ``report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from triptych.compat.loading import open_for
from triptych.recovery.output_folder import model_to_evaluate
from triptych.run.prepare import prepare
from triptych.terminal import Terminal


def evaluate(run: Path, overrides: Sequence[str], checkpoints: Sequence[Path], *, base: bool) -> None:
    """Evaluate the run's final model, or these checkpoints, and the base before them where it is asked for.

    Raises:
        ConfigError: if a folder or a scorer is not there.
        DataError: with all problems, under ``data.on_error: stop``.
        ModelError: if a model cannot be loaded.
    """
    out = Terminal()
    settings = open_for(run, overrides, out).settings
    folders = [model_to_evaluate(settings, checkpoint) for checkpoint in checkpoints or (None,)]
    prepared = prepare(settings, ("eval",), out, rejected=False)
    if base:
        folders.insert(0, prepared.files.folder)
    from triptych.inference.evaluate import evaluate_all

    evaluate_all(settings, prepared, folders, out)
