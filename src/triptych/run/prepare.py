"""From a run file to indexed samples: read the model's small files, examine the sources, decide about problems."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.corpus.corpus import Corpus
from triptych.corpus.examine import CheckReport, Encoder
from triptych.corpus.execution.executor import Engine
from triptych.corpus.loading import load_or_build
from triptych.errors import ConfigError, DataError, Problem, printable_json
from triptych.family.family import ModelFiles, read_model_files
from triptych.family.folders import check_not_quantised
from triptych.planning.cost import SampleCost
from triptych.planning.mixture import Mixture
from triptych.planning.plan import Lengths, Plan, make_plan
from triptych.planning.sharing import Sharing
from triptych.run.reporter import Reporter, report_line
from triptych.run.selection import SPLITS as SPLITS
from triptych.run.selection import Split as Split
from triptych.run.selection import select
from triptych.run.settings import RunSettings
from triptych.run.settings.training import TrainSettings
from triptych.sources.records import Source

REJECTED = "rejected.jsonl"


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that is known before torch is imported."""

    files: ModelFiles
    encoder: Encoder
    corpora: dict[Split, Corpus]
    """The good samples of each split that has sources."""
    reports: dict[Split, CheckReport]


def make_encoder(files: ModelFiles, settings: RunSettings) -> Encoder:
    """How this run's model reads samples, under the run's limits.

    Raises:
        ConfigError: if the limits contradict the model's own.
    """
    geometry = settings.data.geometry(files.geometry)
    if geometry.min_pixels > geometry.max_pixels:
        raise ConfigError(
            f"data.min_pixels {geometry.min_pixels:,} is larger than data.max_pixels {geometry.max_pixels:,} "
            "(one of them is the model's own)"
        )
    return Encoder(files.template(), geometry, settings.budget(geometry.merge_size), files.text_hash())


def prepare(
    settings: RunSettings,
    splits: Sequence[Split],
    out: Reporter,
    engine: Engine | None = None,
    *,
    rejected: bool = True,
) -> Prepared:
    """Index the sources of ``splits``; takes seconds, decodes no image and imports no torch.

    What was read and measured before, by any run, comes from the user's cache folder.

    Args:
        settings: of the run.
        splits: whose sources are indexed.
        out: where progress and counts are shown.
        engine: where the work is done; None means the cores of this machine.
        rejected: with ``data.on_error: skip``, start ``rejected.jsonl`` in the output folder with the problems. Not
            where the folder holds a run that goes on, or that is only looked at.

    Raises:
        ConfigError: if a data file is missing, or what is to learn does not fit the model.
        ModelError: if the model folder cannot be used, or is quantised.
        DataError: with all problems of all splits, under ``data.on_error: stop``; or if no good sample is left.
    """
    files = read_model_files(settings.model.path)
    check_not_quantised(files.config, settings.model.path)
    settings.check_model(files.shapes)
    if files.replaced is not None and is_main_process():
        out.line(files.replaced)
    encoder = make_encoder(files, settings)
    Path(settings.output).mkdir(parents=True, exist_ok=True)
    wholes: dict[Split, Corpus] = {}
    reports: dict[Split, CheckReport] = {}
    for split in splits:
        if split == "eval" and settings.data.hold_out is not None and "train" in wholes:
            wholes[split], reports[split] = wholes["train"], CheckReport()  # its problems are in train's
        elif sources := settings.indexed(split):
            wholes[split], reports[split] = index_sources(f"data.{split}", sources, encoder, out, engine)
    problems = [problem for found in reports.values() for problem in found.problems]
    if problems and settings.data.on_error == "stop":
        hints = [hint for found in reports.values() for hint in found.hints]
        raise DataError(problems, [*hints, "fix the data, or set data.on_error: skip to train on the rest"])
    for split, found in reports.items():
        if not len(wholes[split]):
            advice = [*found.hints, f"no good sample is left in data.{split}"]
            raise DataError(found.problems or found.dropped, advice)
    corpora = {split: select(settings, split, whole) for split, whole in wholes.items()}
    if is_main_process():
        for split, found in reports.items():
            taken = "" if len(corpora[split]) == len(wholes[split]) else f"; {len(corpora[split]):,} of them are taken"
            said = report_line(found) if found.samples else f"{len(wholes[split]):,} samples of data.train"
            out.line(f"data.{split}: {said}{taken}")
        if rejected:
            write_rejected(Path(settings.output), [p for c in reports.values() for p in (*c.problems, *c.dropped)], out)
    return Prepared(files, encoder, corpora, reports)


def index_sources(
    name: str,
    sources: Sequence[Source],
    encoder: Encoder | None,
    out: Reporter,
    engine: Engine | None = None,
    *,
    deep: bool = False,
) -> tuple[Corpus, CheckReport]:
    """The corpus of ``sources`` and the report of all their records, with the progress shown on ``out``.

    Args:
        name: what the progress is of, for example ``data.train``.
        sources: the data files.
        encoder: how the model reads samples; None checks records and images without a model.
        out: where the progress is shown.
        engine: where the work is done; None means the cores of this machine.
        deep: decode every image that was not decoded before.

    Raises:
        ConfigError: if a data file is missing or cannot be read.
    """
    with out.watch(name) as progress:
        return load_or_build(sources, encoder, None, engine, progress, deep=deep)


def train_mixture(settings: RunSettings, sources: NDArray[Any]) -> Mixture:
    """How much of each source an epoch of the run holds.

    Args:
        settings: of the run.
        sources: (K,) source of each sample.

    Raises:
        ConfigError: if it is nothing at all.
    """
    shares = tuple(source.share() for source in settings.data.train)
    sizes = np.bincount(sources, minlength=len(shares))
    mixture = Mixture(tuple(sizes.tolist()), shares)
    if not sum(mixture.counts()):
        raise ConfigError("data.train: `epochs` of its sources leave no sample in an epoch; raise them")
    return mixture


def rows_per_rank(settings: RunSettings, world_size: int) -> int:
    """Rows of an optimizer step that each rank takes.

    Raises:
        ConfigError: if they do not divide.
    """
    rows = settings.train.rows_per_step
    if rows % world_size:
        raise ConfigError(f"train.rows_per_step: {rows} rows do not divide among {world_size} ranks")
    return rows // world_size


def plan_training(
    settings: RunSettings,
    corpus: Corpus,
    world_size: int,
    cost: SampleCost | None = None,
    sharing: Sharing | None = None,
) -> Plan:
    """The rows of a run: what ``triptych plan`` shows is what training takes.

    Args:
        settings: of the run.
        corpus: its samples.
        world_size: ranks that share the rows.
        cost: what a sample costs, to give ranks alike to do; None for rows in the order in which they are drawn.
        sharing: what samples share, to keep those together; see ``decide_sharing``.

    Raises:
        ConfigError: if the sources' shares leave no sample in an epoch.
    """
    costs = None if cost is None else corpus.costs(cost)
    return plan_rows(settings, corpus.lengths, corpus.sources, costs, world_size, sharing)


def plan_rows(
    settings: RunSettings,
    lengths: Lengths,
    sources: NDArray[Any],
    costs: NDArray[np.int64] | None,
    world_size: int,
    sharing: Sharing | None = None,
) -> Plan:
    """The rows of a run over samples of which only integers are known.

    Args:
        settings: of the run.
        lengths: of its K samples.
        sources: (K,) source of each.
        costs: (K,) what each costs; None for rows in the order in which they are drawn.
        world_size: ranks that share the rows.
        sharing: what samples share, to keep those together.

    Raises:
        ConfigError: if the sources' shares leave no sample in an epoch.
    """
    train = settings.train

    def planned(epochs: int) -> Plan:
        return make_plan(
            lengths,
            settings.row_spec(),
            epochs=epochs,
            seed=train.seed,
            world_size=world_size,
            rows_per_step=train.rows_per_step,
            costs=costs,
            mixture=train_mixture(settings, sources),
            sharing=sharing,
        )

    return _cut(planned, train)


def _cut(planned: Callable[[int], Plan], train: TrainSettings) -> Plan:
    """As many epochs as the settings ask for, the last one in part; without their number, as ``max_steps`` needs."""
    most = None if train.max_steps is None else train.max_steps * train.rows_per_step
    if train.epochs is None:
        assert most is not None  # the settings see to it
        epochs = math.ceil(most / max(1, len(planned(1))))
        while len(plan := planned(epochs)) < most:
            epochs += 1
        return plan.first(most)
    plan, whole = planned(math.ceil(train.epochs)), int(train.epochs)
    if train.epochs != whole:
        first, last = plan.epoch_bounds[whole : whole + 2].tolist()
        rows = first + math.ceil((train.epochs - whole) * (last - first))
        plan = plan.first(-(-rows // train.rows_per_step) * train.rows_per_step)
    return plan if most is None else plan.first(most)


def write_rejected(output: Path, problems: Sequence[Problem], out: Reporter) -> None:
    """Start ``rejected.jsonl`` with what was left out before training; none, and an old file is removed."""
    path = output / REJECTED
    path.unlink(missing_ok=True)
    append_rejected(output, problems)
    if problems:
        out.line(f"left out: {len(problems):,} problems, listed in {path}")


def append_rejected(output: Path, problems: Sequence[Problem], *, step: int | None = None) -> None:
    """Add problems to ``rejected.jsonl``; those that came up during the run carry their optimizer step."""
    if problems:
        told = {} if step is None else {"step": step}
        with (output / REJECTED).open("a", encoding="utf-8") as file:
            dumped = (json.dumps(problem.to_dict() | told, ensure_ascii=False) for problem in problems)
            file.writelines(printable_json(line) + "\n" for line in dumped)


def is_main_process() -> bool:
    """Whether this process speaks for the run; launchers set RANK."""
    return os.environ.get("RANK", "0") == "0"
