"""From settings to a run that may begin: its output folder is its own, checkpoint and samples are what they were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from triptych.recovery import checkpoints, output_folder, resources, resume
from triptych.recovery.resume import RUN_FILE, Start
from triptych.recovery.stopping import Stop
from triptych.run import hf_names, run_file
from triptych.run.prepare import Prepared, is_main_process, prepare
from triptych.run.reporter import Reporter
from triptych.run.settings import RunSettings


@contextmanager
def starting(
    settings: RunSettings,
    out: Reporter,
    *,
    resuming: bool = False,
    overrides: Sequence[str] = (),
    stop: Stop | None = None,
) -> Iterator[tuple[RunSettings, Prepared, Start]]:
    """Everything before torch is imported; the output folder is held until the end.

    Args:
        settings: of the run file and the overrides.
        out: where it is said what happens.
        resuming: go on from the last checkpoint.
        overrides: of the command line; a resumed run keeps those of its first start.
        stop: asked between the parts; None for a run that no signal stops.

    Yields:
        The settings in effect, the samples, and where to begin.

    Raises:
        FinishedError: if the run that is to be resumed is finished.
        ConfigError: if there is nothing to resume, a setting or sample changed, or the folder is another run's.
        DataError: with all problems, under ``data.on_error: stop``.
        ModelError: if the model folder cannot be used.
        ResourceError: for a disk or memory that is full or cannot be used, also while training.
    """
    hf_names.check_packages(settings.train.hf, settings.model.train)
    stop, output = stop or Stop(), Path(settings.output)
    with resources.explained(output), output_folder.claimed(output):
        if resuming:
            resumed = resume.settle(resume.find_checkpoint(output, out), settings, overrides, out)
            stop.check()
            settings = resumed.settings
            prepared = prepare(settings, ("train", "eval"), out, rejected=False)
            stop.check()
            start = resume.go_on(resumed, prepared, stop, out)
        else:
            settings.model.check_adapter()
            cleared = output_folder.make_room(output)
            if cleared and is_main_process():
                out.line(f"removed what an earlier run left in {output}: {', '.join(cleared)}")
            prepared = prepare(settings, ("train", "eval"), out)
            stop.check()
            start = resume.fresh(settings, prepared, overrides, stop)
        if is_main_process():
            checkpoints.clear_unfinished(output)
            start.samples.write(output)
            (output / RUN_FILE).write_text(run_file.to_yaml(settings), encoding="utf-8")
        stop.check()
        yield settings, prepared, start
