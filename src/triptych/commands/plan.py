"""``triptych plan``: what a run will do, from exact lengths, before a weight is read."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from triptych.corpus.corpus import Corpus
from triptych.errors import TriptychError
from triptych.planning.balance import idle_share
from triptych.planning.cost import SampleCost, model_cost
from triptych.planning.plan import Plan
from triptych.run import console, run_file
from triptych.run.prepare import Prepared, plan_training, prepare, rows_per_rank, train_mixture
from triptych.run.settings import RunSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from triptych.forward.memory import MemoryModel, RowSize

LONGEST = 5
LONG_WAIT = 0.03
"""Share of the ranks' time from which on it is worth doing something about."""


def plan(run: Path, overrides: Sequence[str], *, world_size: int, dry_run_worst: bool) -> None:
    """Print what a run will do: samples, rows, steps, fill, the longest samples, and the memory of the largest row.

    Args:
        run: the run file.
        overrides: ``key=value`` settings.
        world_size: ranks that will share the rows.
        dry_run_worst: run the largest row forward and backward on this machine's device.

    Raises:
        ConfigError: if the run file cannot be used or a data file is missing.
        DataError: with all problems, under ``data.on_error: stop``.
        TriptychError: if the largest row does not fit the device's memory.
    """
    out = console.console()
    settings = run_file.load(run, overrides)
    prepared = prepare(settings, ("train",), out)
    corpus = prepared.corpora["train"]
    began = time.monotonic()
    rows_per_rank(settings, world_size)
    cost = model_cost(settings.model.recipe, prepared.files.config)
    planned = plan_training(settings, corpus, world_size, cost)
    out.print(f"planned in {time.monotonic() - began:.1f} s", markup=False)
    if len(settings.data.train) > 1:
        out.print(_sources_table(settings, prepared))
    rows = RowSums(corpus, planned)
    out.print(_plan_table(settings, prepared, planned, rows))
    out.print(_longest_table(corpus))
    if world_size > 1:
        out.print(_idle_line(settings, corpus, planned, world_size, cost), markup=False)
    model = _model_without_weights(settings, prepared)
    worst = _memory(settings, prepared, model, rows, out)
    out.print(_features_line(settings, prepared, model, planned), markup=False)
    if dry_run_worst:
        _dry_run(settings, prepared, planned.row(worst), out)


class RowSums:
    """What each of R rows holds."""

    def __init__(self, corpus: Corpus, planned: Plan) -> None:
        self.tokens = planned.sums(corpus.lengths.tokens)
        """(R,) language tokens"""
        self.patches = planned.sums(corpus.lengths.patches)
        """(R,) vision patches"""
        self.supervised = planned.sums(corpus.supervised)
        """(R,) supervised tokens"""


def _plan_table(settings: RunSettings, prepared: Prepared, planned: Plan, rows: RowSums) -> Table:
    epochs = settings.train.epochs
    tokens, patches = int(rows.tokens.sum()), int(rows.patches.sum())
    image_tokens = patches // prepared.reading.geometry.merge_size**2
    steps = math.ceil(len(planned) / settings.train.rows_per_step)
    lines = [
        ("samples per epoch", f"{len(planned.samples) / epochs:,.0f}"),
        ("epochs", f"{epochs}"),
        ("rows", f"{len(planned):,}"),
        ("steps", f"{steps:,}"),
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
    return console.table("Plan", ("", ""), lines)


def _sources_table(settings: RunSettings, prepared: Prepared) -> Table:
    corpus = prepared.corpora["train"]
    mixture = train_mixture(settings, corpus)
    lines = []
    for number, (source, size, count) in enumerate(
        zip(settings.data.train, mixture.sizes, mixture.counts(), strict=True)
    ):
        own = corpus.lengths.tokens[corpus.sources == number]
        mean = float(own.mean()) if len(own) else 0.0
        share = count / sum(mixture.counts())
        path = source.path if isinstance(source.path, str) else ", ".join(source.path)
        lines.append((path, f"{size:,}", f"{count:,}", f"{share:.1%}", f"{mean:,.0f}"))
    return console.table("Sources", ("source", "samples", "per epoch", "share", "mean tokens"), lines)


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
    return console.table("Longest samples", ("sample", "tokens", "patches", "images"), lines)


def _idle_line(settings: RunSettings, corpus: Corpus, planned: Plan, world_size: int, cost: SampleCost | None) -> str:
    """How long ranks wait for each other, if time is as FLOPs: at the end of steps, or of all rows where sharded."""
    if cost is None:
        return "ranks wait for each other: not known, since settings.json does not give the model's shapes"
    costs = corpus.costs(cost)
    dealt, drawn = (
        [idle_share(rows.sums(costs), wait, world_size) for wait in (settings.train.rows_per_step, world_size)]
        for rows in (planned, plan_training(settings, corpus, world_size))
    )
    hint = ""
    if dealt[0] > LONG_WAIT and settings.batch.tokens and not settings.batch.group_similar:
        hint = "; more rows per step, or batch.group_similar, would make it less"
    return (
        f"{world_size} ranks wait for each other, estimated: {dealt[0]:.1%} of their time, {dealt[1]:.1%} if they "
        f"shard the model; with rows in the order drawn {drawn[0]:.1%} and {drawn[1]:.1%}{hint}"
    )


def _model_without_weights(settings: RunSettings, prepared: Prepared) -> PreTrainedModel | PeftModel:
    import torch

    from triptych.model.loading import choose_precision, empty_model
    from triptych.model.trainable import set_up_training

    precision = choose_precision(settings.model)
    with torch.device("meta"):
        return set_up_training(empty_model(settings.model), prepared.files.family, settings.model, precision)


def _memory(
    settings: RunSettings, prepared: Prepared, model: PreTrainedModel | PeftModel, rows: RowSums, out: Console
) -> int:
    """Print the memory that the largest row is estimated to take; returns its number."""

    from triptych.forward.attention import choose_attention, find_attention_support
    from triptych.forward.memory import MemoryModel, RowSize
    from triptych.model.device import choose_device
    from triptych.model.loading import choose_precision
    from triptych.model.qlora import quantised_weights

    precision, checkpointing = choose_precision(settings.model), settings.train.gradient_checkpointing
    # No weight is read here, so none is packed yet.
    packed = set(quantised_weights(model, prepared.files.family)) if settings.model.train == "qlora" else set()
    attention = settings.model.attention
    if attention == "auto":  # a name that cannot work on this machine may still be planned with
        device = choose_device()
        attention = choose_attention("auto", find_attention_support(device), model.config, precision).name
    memory = MemoryModel(
        model,
        prepared.files.family,
        model.config,
        precision,
        checkpointing=checkpointing,
        attention=attention,
        packed=packed,
        logits_limit=settings.train.logits_bytes,
    )
    worst = memory.largest(rows.tokens, rows.patches, rows.supervised)
    size = RowSize(int(rows.tokens[worst]), int(rows.patches[worst]), int(rows.supervised[worst]))
    out.print(_memory_table(memory, size))
    return worst


def _features_line(settings: RunSettings, prepared: Prepared, model: PreTrainedModel | PeftModel, planned: Plan) -> str:
    """Whether keeping image features pays, for all that the plan knows: neither what is stored nor evaluation."""
    from triptych.model.parts import learning_parts
    from triptych.run.feature_forecast import decide, feature_shape, forecast, measure_room, refusal

    if settings.train.feature_cache == "off":
        return "feature cache off: as set"
    reason = refusal(learns=learning_parts(model, prepared.files.family), sharded=False)
    if reason is not None:
        return f"feature cache off: {reason}"
    found = forecast(settings, {"train": planned}, prepared.corpora, feature_shape(model.config))
    return decide(settings.train, found, measure_room(settings.train)).line


def _memory_table(model: MemoryModel, row: RowSize) -> Table:
    step = model.step(row)
    lines = [
        ("weights", step.weights),
        ("gradients", step.gradients),
        ("optimizer", step.optimizer),
        ("activations", step.activations),
        ("logits", step.logits),
        ("all", step.total),
    ]
    title = (
        f"Memory of the largest row, estimated: {row.tokens:,} tokens, {row.patches:,} patches, "
        f"{row.supervised:,} supervised"
    )
    return console.table(title, ("one device, nothing sharded", "GB"), [(name, f"{n / 1e9:,.2f}") for name, n in lines])


def _dry_run(settings: RunSettings, prepared: Prepared, samples: NDArray[np.int64], out: Console) -> None:
    """Run the largest row through forward, backward and an optimizer step; nothing is kept of it."""
    import torch

    from triptych.forward.batch import build_batch
    from triptych.training.dry_run import run_row

    filler = prepared.reading.template.filler()
    batch = build_batch(prepared.corpora["train"], samples.tolist(), filler=filler)
    for problem in batch.problems:
        out.print(f"lost: {problem}", markup=False)
    try:
        result = run_row(settings, prepared, batch)
    except torch.OutOfMemoryError as error:
        raise TriptychError(
            f"the largest row does not fit the device: {error}; lower batch.tokens, batch.patches or data.max_pixels, "
            "freeze more, or set train.gradient_checkpointing: true"
        ) from error
    out.print(
        f"largest row, run on {result.device}: loss {result.loss:.4f}, {result.seconds:.1f} s, "
        f"peak memory {result.peak_bytes / 1e9:,.2f} GB{result.note}",
        markup=False,
    )
