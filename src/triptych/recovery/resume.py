"""Where a run starts: new, or from the last whole checkpoint, with the settings and samples it was made with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from triptych.errors import ConfigError, Origin, Problem
from triptych.family.fingerprint import check_base
from triptych.family.folders import STATE
from triptych.planning.cost import model_cost
from triptych.planning.plan import Plan
from triptych.recovery import changed_settings, checkpoints, data_identity
from triptych.recovery.changed_settings import Change
from triptych.recovery.data_identity import Recorded
from triptych.recovery.output_folder import FINAL
from triptych.recovery.stopping import Stop
from triptych.run import run_file
from triptych.run.prepare import REJECTED, Prepared, append_rejected, is_main_process
from triptych.run.reporter import Reporter
from triptych.run.settings import RunSettings
from triptych.run.sharing import decide_sharing

RUN_FILE = "run.yaml"


class FinishedError(ConfigError):
    """There is nothing to resume: the run is finished."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run begins, and what of the past it goes on with."""

    samples: Recorded
    """The samples that the run was started on"""
    checkpoint: Path | None = None
    """None for a new run"""
    state: dict[str, Any] = field(default_factory=dict)
    """What the checkpoint notes about its run; of a new run what its first checkpoint will"""
    overrides: tuple[str, ...] = ()
    """Of the command line, those of the first start included"""
    changes: tuple[Change, ...] = ()
    """Settings that are not the checkpoint's, and are applied"""
    place: NDArray[Any] | None = None
    """(K,) number that each sample of the first start has now, -1 for one that vanished; None: all as they were"""
    stop: Stop = field(default_factory=Stop)

    @property
    def step(self) -> int:
        """Optimizer steps that are done."""
        return 0 if self.checkpoint is None else checkpoints.step_of(self.checkpoint)

    def plan(self, settings: RunSettings, world_size: int) -> Plan:
        """The run's rows, as they were planned at its first start."""
        plan = self.samples.plan(settings, world_size)
        return plan if self.place is None else data_identity.surviving(plan, self.place)

    def check_precision(self, name: str) -> None:
        """Compare the precision of the arithmetic, as ``auto`` may mean another one on another machine.

        Raises:
            ConfigError: if the checkpoint was trained in another one.
        """
        before = self.state.get("precision", name)
        if before != name:
            raise ConfigError(
                f"{self.checkpoint} was trained in {before}, and model.precision gives {name} here; "
                f"set model.precision: {before}"
            )

    def note(self) -> dict[str, Any]:
        """What a checkpoint of this run says about it."""
        changed = [
            {"step": self.step, "setting": change.name, "old": change.old, "new": change.new} for change in self.changes
        ]
        return {
            "samples": self.samples.digest,
            "overrides": list(self.overrides),
            "batch_auto": self.state.get("batch_auto", False),
            "changes": [*self.state.get("changes", []), *changed],
        }


def fresh(settings: RunSettings, prepared: Prepared, overrides: Sequence[str] = (), stop: Stop | None = None) -> Start:
    """A new run over these samples."""
    kept = tuple(changed_settings.as_given(settings, overrides))
    state = {"batch_auto": settings.batch.auto}
    return Start(_record(settings, prepared), state=state, overrides=kept, stop=stop or Stop())


def find_checkpoint(output: Path, out: Reporter) -> Path:
    """The last checkpoint of a run that is whole; each newer one that is not is named. Reads it all.

    Raises:
        FinishedError: if the run is finished.
        ConfigError: if there is none.
    """
    final = output / FINAL
    if final.exists():
        damage = checkpoints.fault(final)
        if damage is None:
            raise FinishedError(f"the run in {output} is finished, its model is {final}; there is nothing to resume")
        out.line(f"damaged, made again from the last checkpoint: {final}: {damage}")
    if not checkpoints.found(output):
        raise ConfigError(f"--resume: {output} holds no checkpoint to go on from; start without --resume")
    checkpoint, faults = checkpoints.last_good(output)
    if is_main_process():
        for line in faults:
            out.line(f"damaged, not used: {line}")
    if checkpoint is None:
        told = "\n  ".join(faults)
        raise ConfigError(
            f"--resume: no checkpoint in {output} is whole:\n  {told}\nrestore one from a copy, or start a new run in "
            "another output folder"
        )
    return checkpoint


@dataclass(frozen=True, slots=True)
class Resumed:
    """A checkpoint with its settings settled."""

    checkpoint: Path
    settings: RunSettings
    state: dict[str, Any]
    overrides: tuple[str, ...]
    changes: tuple[Change, ...]


def settle(checkpoint: Path, now: RunSettings, given: Sequence[str], out: Reporter) -> Resumed:
    """The settings to go on with; what differs from the checkpoint's is said.

    Args:
        checkpoint: a whole one.
        now: settings of the run file and of this start's overrides.
        given: these overrides.
        out: where it is said.

    Raises:
        ConfigError: naming each setting that cannot change.
    """
    state: dict[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    before = run_file.load(checkpoint / RUN_FILE)
    settings, kept = changed_settings.keep_overrides(now, given, state.get("overrides", []))
    if settings.batch.auto and state.get("batch_auto"):  # rows as they were chosen at the first start
        chosen = settings.batch.model_copy(update={"auto": False, "tokens": before.batch.tokens})
        settings = settings.model_copy(update={"batch": chosen})
    changes = changed_settings.settle(before, settings, str(checkpoint))
    if is_main_process():
        for override in kept:
            out.line(f"kept from the first start: {override}")
        for line in changed_settings.lines(changes):
            out.line(line)
    return Resumed(checkpoint, settings, state, (*kept, *changed_settings.as_given(settings, given)), tuple(changes))


def go_on(resumed: Resumed, prepared: Prepared, stop: Stop, out: Reporter) -> Start:
    """Hold the samples against those of the first start, and set ``rejected.jsonl`` back to the checkpoint's.

    Raises:
        ConfigError: if a sample changed, or came or vanished where nothing may be skipped.
        ModelError: if the base is another one.
    """
    settings, checkpoint, output = resumed.settings, resumed.checkpoint, Path(resumed.settings.output)
    check_base(checkpoint, settings.model.path)
    now, place = _record(settings, prepared), None
    recorded = data_identity.read(output)
    if recorded is None or recorded.digest != resumed.state["samples"]:
        recorded = now  # it only serves to say more
        if now.digest != resumed.state["samples"]:
            raise ConfigError(
                f"the samples are not those that {checkpoint} was trained on, and {output / data_identity.FILE}, which "
                "would tell the difference, is missing or of another run; restore the data, or start a new run"
            )
    elif now.digest != recorded.digest:
        found = data_identity.compare(recorded, now)
        data_identity.refuse_changed(recorded, found, checkpoint, skip=settings.data.on_error == "skip")
        place = found.place
        if is_main_process() and found.added:
            out.line(f"{found.added:,} samples came since the run was started; it does not take them")
    start = Start(recorded, checkpoint, resumed.state, resumed.overrides, resumed.changes, place, stop)
    if is_main_process():
        _restore_rejected(start, prepared, output, out)
    return start


def _record(settings: RunSettings, prepared: Prepared) -> Recorded:
    corpus = prepared.corpora["train"]
    cost = model_cost(settings.model.recipe, prepared.files.shapes)
    shared = decide_sharing(settings, prepared.files, corpus, cost).sharing
    return data_identity.record(corpus, corpus.costs(cost), shared)


def _restore_rejected(start: Start, prepared: Prepared, output: Path, out: Reporter) -> None:
    assert start.checkpoint is not None
    (output / REJECTED).unlink(missing_ok=True)
    known = set[str]()
    if (start.checkpoint / REJECTED).exists():
        shutil.copyfile(start.checkpoint / REJECTED, output / REJECTED)
        known = lost_samples(output)
    if start.place is None:
        return
    reasons = {problem.origin.number: problem for problem in prepared.reports["train"].problems}
    gone = [start.samples.origin(int(number)) for number in (start.place < 0).nonzero()[0]]
    new = [origin for origin in gone if origin.number not in known]
    problems = [
        reasons.get(origin.number, Problem("sample-gone", origin, "it was there when the run was started"))
        for origin in new
    ]
    append_rejected(output, problems, step=start.step)
    if gone:
        out.line(f"{len(gone):,} samples vanished since the run was started; it goes on without them")
        for problem in problems[: data_identity.SHOWN]:
            out.line(f"lost: {problem}")


def lost_samples(output: Path) -> set[str]:
    """Numbers (see ``Origin.number``) of the samples that were lost during the run, from ``rejected.jsonl``."""
    path = output / REJECTED
    if not path.exists():
        return set()
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {Origin(entry["path"], entry.get("element", entry["line"])).number for entry in entries if "step" in entry}
