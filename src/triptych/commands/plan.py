"""``triptych plan``: what a run will do, from exact lengths, before a weight is read."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from rich.table import Table

from triptych.compat.loading import open_for
from triptych.corpus.corpus import Corpus
from triptych.errors import TriptychError
from triptych.planning.balance import idle_share
from triptych.planning.cost import SampleCost, model_cost
from triptych.planning.plan import Plan
from triptych.run.prepare import Prepared, plan_training, prepare, rows_per_rank, train_mixture
from triptych.run.settings import RunSettings
from triptych.run.sharing import ShareDecision, decide_sharing
from triptych.terminal import Terminal, table

if TYPE_CHECKING:
    from triptych.estimate.duration import Duration
    from triptych.estimate.forecast import Forecast, RowSums, Saving
    from triptych.forward.memory import RowSize, StepMemory
    from triptych.training.dry_run import DryRun

LONGEST = 5
LONG_WAIT = 0.03
"""Share of the ranks' time from which on it is worth doing something about."""


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What ``triptych plan`` is asked beside the run."""

    world_size: int = 1
    """Ranks that will share the rows"""
    gpu: str | None = None
    """GPU to compare with, by its memory or model; None for the device here"""
    fit: bool = False
    """Choose the largest row that fits, as ``batch: auto`` does"""
    dry_run_worst: bool = False
    """Run the largest row forward and backward on this machine's device"""
    as_json: bool = False
    """Print one JSON object on standard output"""


def plan(run: Path, overrides: Sequence[str], options: PlanOptions) -> None:
    """Print what a run will do: samples, rows, steps, fill, longest samples; device, memory against it, time.

    Args:
        run: the run file.
        overrides: ``key=value`` settings.
        options: what else is asked.

    Raises:
        ConfigError: if the run file cannot be used, a data file is missing, or no row fits under ``fit``.
        DataError: with all problems, under ``data.on_error: stop``.
        TriptychError: if the largest row does not fit the device's memory in the dry run.
    """
    out = Terminal()
    settings = open_for(run, overrides, out).settings
    prepared = prepare(settings, ("train",), out, rejected=False)
    # The model's shapes come from transformers: only now that the data is known to be right.
    from triptych.estimate.devices import find_target
    from triptych.estimate.fit import fitted
    from triptych.estimate.forecast import Forecast

    corpus = prepared.corpora["train"]
    forecast = Forecast(settings, prepared.files, find_target(options.gpu, settings.model))
    if options.fit or settings.batch.auto:
        settings = fitted(forecast, corpus)
        forecast = forecast.changed(batch=settings.batch.model_dump())
    began = time.monotonic()
    rows_per_rank(settings, options.world_size)
    cost = model_cost(settings.model.recipe, prepared.files.shapes)
    shared = decide_sharing(settings, prepared.files, corpus, cost)
    planned = plan_training(settings, corpus, options.world_size, cost, shared.sharing)
    seconds = time.monotonic() - began
    view = PlanView(prepared, planned, forecast, cost, shared, options)
    if not options.as_json:
        out.line(f"planned in {seconds:.1f} s")
        view.print(out)
    measured = _dry_run(view, out) if options.dry_run_worst else None
    if measured is not None and not options.as_json:
        out.line(view.confirmed(measured))
    if options.as_json:
        sys.stdout.buffer.write(orjson.dumps(view.as_dict(measured), option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")
        sys.stdout.flush()


class PlanView:
    """A plan as it is shown, to people and to machines."""

    def __init__(
        self,
        prepared: Prepared,
        planned: Plan,
        forecast: Forecast,
        cost: SampleCost,
        shared: ShareDecision,
        options: PlanOptions,
    ) -> None:
        from triptych.estimate.duration import estimate
        from triptych.estimate.fit import longest
        from triptych.estimate.forecast import RowSums, savings

        self.settings: RunSettings = forecast.settings
        self.prepared, self.planned = prepared, planned
        self.rows = rows = RowSums(prepared.corpora["train"], planned)
        self.forecast, self.cost, self.options, self.shared = forecast, cost, options, shared
        corpus = prepared.corpora["train"]
        self.worst = forecast.worst(rows)
        self.row: RowSize = rows.size(self.worst)
        self.step: StepMemory = forecast.step(self.row)
        self.savings: list[Saving] = savings(forecast, self.row, longest(corpus).size)
        self.costs = planned.costs(corpus.costs(cost))
        self.duration: Duration = estimate(
            int(self.costs.sum()),
            rows,
            forecast.target,
            checkpointing=self.settings.train.gradient_checkpointing,
            output=Path(self.settings.output),
            ranks=options.world_size,
        )

    def print(self, out: Terminal) -> None:
        settings, prepared, planned = self.settings, self.prepared, self.planned
        if len(settings.data.train) > 1:
            out.show(_sources_table(settings, prepared))
        out.show(_plan_table(settings, prepared, planned, self.rows))
        out.show(_longest_table(prepared.corpora["train"]))
        if self.options.world_size > 1:
            out.line(self.idle_line())
        out.show(_memory_table(self.step, self.row))
        if self.savings:
            out.show(_savings_table(self.savings))
        out.line(_features_line(settings, prepared, self.forecast, planned))
        if self.shared.line:
            out.line(self.shared.line)
        for name, text in self.verdict().items():
            out.line(f"{name + ':':<8} {text}")

    def fits(self) -> bool | None:
        """Whether the largest row fits the device; None on a CPU, whose memory is not compared."""
        usable = self.forecast.target.usable
        return None if usable is None else self.step.total <= usable

    def verdict(self) -> dict[str, str]:
        """Device, memory and time, a line each."""
        target, batch = self.forecast.target, self.settings.batch
        precision = str(target.precision).removeprefix("torch.")
        needed = f"{self.step.total / 1e9:.1f} GB for the largest row, estimated"
        if target.usable is None:
            memory = f"{needed}; --gpu 24GB compares it with a GPU"
        elif self.fits():
            memory = f"{needed}: fits the {target.usable / 1e9:.1f} GB for tensors"
        else:
            memory = f"{needed}: does NOT fit the {target.usable / 1e9:.1f} GB for tensors"
        lines = {"device": f"{target.name}, {precision}", "memory": memory, "time": str(self.duration)}
        if self.options.fit or batch.auto:
            lines["rows"] = f"batch.tokens={batch.tokens} is the largest that fits, by this estimate"
        return lines

    def confirmed(self, measured: DryRun) -> str:
        """What the dry run says of the estimates."""
        from triptych.estimate.duration import from_row

        time = from_row(measured.seconds, int(self.costs[self.worst]), int(self.costs.sum()))
        return (
            f"largest row, run on {measured.device}: loss {measured.loss:.4f}, {measured.seconds:.1f} s, "
            f"peak memory {measured.peak_bytes / 1e9:,.2f} GB{measured.note}\ntime:    {time}"
        )

    def idle_line(self) -> str:
        """How long ranks wait for each other, if time is as FLOPs: at the end of steps, or of rows where sharded."""
        settings, ranks, corpus = self.settings, self.options.world_size, self.prepared.corpora["train"]
        costs = corpus.costs(self.cost)
        in_order = plan_training(settings, corpus, ranks, sharing=self.shared.sharing)
        dealt, drawn = (
            [idle_share(rows.costs(costs), wait, ranks) for wait in (settings.train.rows_per_step, ranks)]
            for rows in (self.planned, in_order)
        )
        hint = ""
        if dealt[0] > LONG_WAIT and settings.batch.tokens and not settings.batch.group_similar:
            hint = "; more rows per step, or batch.group_similar, would make it less"
        return (
            f"{ranks} ranks wait for each other, estimated: {dealt[0]:.1%} of their time, {dealt[1]:.1%} if they "
            f"shard the model; with rows in the order drawn {drawn[0]:.1%} and {drawn[1]:.1%}{hint}"
        )

    def as_dict(self, measured: DryRun | None) -> dict[str, Any]:
        target, planned = self.forecast.target, self.planned
        return {
            "samples": len(planned.samples),
            "epochs": round(planned.epochs, 2),
            "rows": len(planned),
            "steps": _steps(self.settings, planned),
            "tokens": int(self.rows.tokens.sum()),
            "patches": int(self.rows.patches.sum()),
            "supervised": int(self.rows.supervised.sum()),
            "batch": self.settings.batch.model_dump(),
            "device": {
                "name": target.name,
                "precision": str(target.precision).removeprefix("torch."),
                "memory_bytes": target.memory,
                "usable_bytes": target.usable,
            },
            "largest_row": asdict(self.row),
            "memory_bytes": {**asdict(self.step), "total": self.step.total},
            "fits": self.fits(),
            "savings": [asdict(saving) for saving in self.savings],
            "sharing": {
                "on": self.shared.sharing is not None,
                "saves": None if self.shared.savings is None else asdict(self.shared.savings),
            },
            "seconds": self.duration.seconds,
            "seconds_source": self.duration.source,
            "dry_run": None if measured is None else asdict(measured),
        }


def _steps(settings: RunSettings, planned: Plan) -> int:
    return math.ceil(len(planned) / settings.train.rows_per_step)


def _plan_table(settings: RunSettings, prepared: Prepared, planned: Plan, rows: RowSums) -> Table:
    epochs = max(planned.epochs, 1e-9)
    tokens, patches = int(rows.tokens.sum()), int(rows.patches.sum())
    image_tokens = patches // prepared.encoder.geometry.merge_size**2
    lines = [
        ("samples per epoch", f"{len(planned.samples) / epochs:,.0f}"),
        ("epochs", f"{epochs:.4g}"),
        ("rows", f"{len(planned):,}"),
        ("steps", f"{_steps(settings, planned):,}"),
        ("samples per row, mean", f"{len(planned.samples) / max(1, len(planned)):.1f}"),
        ("tokens per epoch", f"{tokens / epochs:,.0f}"),
        ("of them in images", f"{image_tokens / max(1, tokens):.1%}"),
        ("of them supervised", f"{rows.supervised.sum() / max(1, tokens):.1%}"),
        ("patches per epoch", f"{patches / epochs:,.0f}"),
        ("tokens of the longest row", f"{rows.tokens.max():,}"),
        ("patches of the largest row", f"{rows.patches.max():,}"),
    ]
    batch = settings.batch
    if batch.tokens is not None:
        lines.append(("fill of rows, tokens", f"{rows.tokens.mean() / batch.tokens:.1%}"))
    if batch.patches is not None:
        lines.append(("fill of rows, patches", f"{rows.patches.mean() / batch.patches:.1%}"))
    return table("Plan", ("", ""), lines)


def _sources_table(settings: RunSettings, prepared: Prepared) -> Table:
    corpus = prepared.corpora["train"]
    mixture = train_mixture(settings, corpus.sources)
    lines = []
    for number, (source, size, count) in enumerate(
        zip(settings.data.train, mixture.sizes, mixture.counts(), strict=True)
    ):
        own = corpus.lengths.tokens[corpus.sources == number]
        mean = float(own.mean()) if len(own) else 0.0
        share = count / sum(mixture.counts())
        path = source.path if isinstance(source.path, str) else ", ".join(source.path)
        lines.append((path, f"{size:,}", f"{count:,}", f"{share:.1%}", f"{mean:,.0f}"))
    return table("Sources", ("source", "samples", "per epoch", "share", "mean tokens"), lines)


def _longest_table(corpus: Corpus) -> Table:
    lengths = corpus.lengths
    longest = np.argsort(-lengths.tokens, kind="stable")[:LONGEST]
    lines = [
        (
            str(corpus.origin(index)),
            f"{lengths.tokens[index]:,}",
            f"{lengths.patches[index]:,}",
            f"{corpus.image_counts[index]}",
        )
        for index in longest.tolist()
    ]
    return table("Longest samples", ("sample", "tokens", "patches", "images"), lines)


def _features_line(settings: RunSettings, prepared: Prepared, forecast: Forecast, planned: Plan) -> str:
    """Whether keeping image features pays, for all that the plan knows: neither what is stored nor evaluation."""
    from triptych.model.parts import learning_parts
    from triptych.run.feature_forecast import decide, feature_shape, measure_room, refusal
    from triptych.run.feature_forecast import forecast as forecast_features

    if settings.train.feature_cache == "off":
        return "feature cache off: as set"
    reason = refusal(learns=learning_parts(forecast.model, prepared.files.family), sharded=False)
    if reason is not None:
        return f"feature cache off: {reason}"
    shape = feature_shape(forecast.files.shapes)
    found = forecast_features(settings, {"train": planned}, prepared.corpora, shape)
    return decide(settings.train, found, measure_room(settings.train)).line


def _memory_table(step: StepMemory, row: RowSize) -> Table:
    lines = [
        ("weights", step.weights),
        ("gradients", step.gradients),
        ("optimizer", step.optimizer),
        ("activations", step.activations),
        ("logits", step.logits),
        ("all", step.total),
    ]
    size = f"{row.tokens:,} tokens, {row.patches:,} patches, {row.supervised:,} targets"
    shown = [(name, f"{n / 1e9:,.2f}") for name, n in lines]
    return table("Memory of the largest row, estimated", (f"{size}; one device", "GB"), shown)


def _savings_table(found: Sequence[Saving]) -> Table:
    lines = [(saving.change, f"{saving.bytes / 1e9:,.2f}", saving.cost) for saving in found]
    return table("What would save memory of it", ("setting", "GB", "at the cost of"), lines)


def _dry_run(view: PlanView, out: Terminal) -> DryRun:
    """Run the largest row through forward, backward and an optimizer step; nothing is kept of it."""
    import torch

    from triptych.forward.batch import build_batch
    from triptych.training.dry_run import run_row

    prepared, samples = view.prepared, view.planned.row(view.worst).tolist()
    filler = prepared.encoder.template.filler()
    batch = build_batch(prepared.corpora["train"], samples, filler=filler, share=view.shared.share)
    for problem in batch.problems:
        out.line(f"lost: {problem}")
    try:
        return run_row(view.settings, prepared, batch)
    except torch.OutOfMemoryError as error:
        raise TriptychError(
            f"the largest row does not fit the device: {error}; lower batch.tokens, batch.patches or data.max_pixels, "
            "freeze more, or set train.gradient_checkpointing: true"
        ) from error
