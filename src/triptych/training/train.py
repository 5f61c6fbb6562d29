"""Train: plan the run, hand rows to transformers' Trainer, normalise the loss over the step's supervised tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainingArguments, set_seed

from triptych.errors import ConfigError, ModelError
from triptych.estimate.devices import target_here
from triptych.estimate.fit import fitted
from triptych.estimate.forecast import Forecast
from triptych.forward.batch import RowDataset
from triptych.forward.isolation import Isolation, choose_isolation
from triptych.forward.row_forward import RowForward
from triptych.model.compile import check_compiler, compile_layers
from triptych.model.loading import PixelNormalizer, ProcessorFiles, choose_precision
from triptych.model.parts import PartSize, learning_parts, part_sizes
from triptych.model.trainable import parameter_rates
from triptych.planning.cost import SampleCost, model_cost
from triptych.planning.plan import Plan, sequential_plan
from triptych.recovery import resources
from triptych.recovery.output_folder import FINAL
from triptych.recovery.resume import RUN_FILE, STATE, Start, fresh, lost_samples
from triptych.rows.builder import RowBuilder
from triptych.rows.feature_store import FeatureReader
from triptych.rows.loader import Loading, threads_per_worker
from triptych.run import run_file
from triptych.run.environment import keep_freed_memory
from triptych.run.prepare import Prepared, Split, is_main_process
from triptych.run.reporter import Reporter
from triptych.run.settings import RunSettings
from triptych.training.callbacks import (
    EpochCallback,
    ReportCallback,
    RunLogCallback,
    StopCallback,
    tensorboard_callback,
    tolerate_trackers,
)
from triptych.training.feature_setup import open_features
from triptych.training.hf_arguments import training_arguments
from triptych.training.setup import load_for_training
from triptych.training.summary import write_summary
from triptych.training.trainer import RowTrainer

LEAKAGE = 0.1
"""Relative difference of logits above which it is no rounding; bfloat16 was seen to give 0.01, leaks 0.6 and more."""


def train(settings: RunSettings, prepared: Prepared, out: Reporter, *, start: Start | None = None) -> Path:
    """Train as ``settings`` say; returns the folder of the final model.

    Args:
        settings: of the run.
        prepared: its samples.
        out: where it is said what happens.
        start: where to begin, from ``recovery.start``; None for a new run.

    Raises:
        ConfigError: for settings that cannot work together.
        DataError: under ``data.on_error: stop``, if a sample breaks during training.
        Stopped: after a signal; the run can go on from there.
    """
    start = start or fresh(settings, prepared)
    output, stop, checkpoint = Path(settings.output), start.stop, start.checkpoint
    settings = _with_rows(settings, prepared, out)
    precision = choose_precision(settings.model)
    args = training_arguments(settings, precision)
    if args.device.type == "cpu":
        keep_freed_memory()
    cost = model_cost(settings.model.recipe, prepared.files.config)
    plans = _plan_run(settings, prepared, start, args, cost)
    plan = plans["train"]
    _check_precision(start, precision)
    stop.check()
    family = prepared.files.family
    set_seed(settings.train.seed)  # adapters start from random weights
    isolation = choose_isolation(family, args.device)
    checkpointing = settings.train.gradient_checkpointing
    model, attention = load_for_training(
        settings.model, family, precision, args.device, isolation, checkpointing=checkpointing
    )
    stop.check()
    rates = parameter_rates(model, family, settings)
    model.config.use_cache = False
    if settings.train.compile:
        check_compiler(args.device)
        compile_layers(model, family)
    sharded = _is_sharded(args)
    features = open_features(
        settings, prepared, plans, model, args, precision, sharded=sharded, resumed=start.state.get("feature_cache")
    )
    note = start.note() | {"feature_cache": features.decision.on, "precision": _name(precision)}
    extra = {RUN_FILE: run_file.to_yaml(settings), STATE: json.dumps(note)}
    processor = ProcessorFiles(prepared.files, prepared.encoder.geometry, extra)
    _check_sharding(args, isolation)
    if is_main_process():
        _print_sizes(part_sizes(model, family, rates), out)
        _print_start(settings, prepared, plan, precision, checkpoint, out)
        out.line(str(attention))
        if not isolation.packs:
            out.line(f"one sample at a time: {isolation.reason}")
        out.line(features.decision.line)
    together = args.world_size > 1 and (sharded or not learning_parts(model, family).isdisjoint(("vision", "merger")))
    datasets = _datasets(settings, prepared, plans, features.reader, args, start.step, with_image=together)
    callbacks = _callbacks(settings, plan, output, out)
    trainer = RowTrainer(
        model=model,
        args=args,
        train_dataset=datasets["train"],
        eval_dataset=datasets.get("eval"),
        processing_class=processor,
        forward=RowForward(
            PixelNormalizer(prepared.files), isolation, attention, features.cache, settings.train.logits_bytes
        ),
        family=family,
        settings=settings,
        rates=rates,
        plan=plan,
        out=out,
        start=start,
        callbacks=callbacks,
    )
    for callback in callbacks:
        if isinstance(callback, StopCallback):
            callback.signal = trainer.signal_to_stop
    if not sharded:
        _check_isolation(trainer, out)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    tolerate_trackers(trainer, out)
    stop.check()
    stop.phase = "training"
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        stop.phase = "end"
    finally:
        for callback in callbacks:
            if isinstance(callback, ReportCallback):
                callback.close()
        stored = features.close()
        if stored:
            out.line(stored)
    final = output / FINAL
    trainer.save_final(final)
    if is_main_process():
        try:
            write_summary(output, settings, trainer.state.log_history, plan, len(lost_samples(output)), out)
        except OSError as error:
            out.line(f"no summary: {resources.explain(error, output) or error}; the model is written")
    return final


def _with_rows(settings: RunSettings, prepared: Prepared, out: Reporter) -> RunSettings:
    """The run with rows of a size: under ``batch: auto`` the largest that fit."""
    if not settings.batch.auto:
        return settings
    forecast = Forecast(settings, prepared.files, target_here(settings.model))
    found = fitted(forecast, *prepared.corpora.values())
    if is_main_process():
        out.line(f"batch: auto: rows of {found.batch.tokens:,} tokens on {forecast.target.name}")
    return found


def _plan_run(
    settings: RunSettings, prepared: Prepared, start: Start, args: TrainingArguments, cost: SampleCost | None
) -> dict[Split, Plan]:
    plans: dict[Split, Plan] = {"train": start.plan(settings, args.world_size)}
    held_out = prepared.corpora.get("eval")
    if held_out is not None:
        costs = None if cost is None else held_out.costs(cost)
        plans["eval"] = sequential_plan(
            held_out.lengths, settings.batch.spec(), world_size=args.world_size, costs=costs
        )
    return plans


def _datasets(
    settings: RunSettings,
    prepared: Prepared,
    plans: dict[Split, Plan],
    store: FeatureReader | None,
    args: TrainingArguments,
    done: int,
    *,
    with_image: bool,
) -> dict[Split, RowDataset]:
    """The rows of each split, from ``done`` steps on; ``with_image``: ranks that run the tower together must all run
    it, on every row.
    """
    data, filler = settings.data, prepared.encoder.template.filler()
    threads = threads_per_worker(data.workers)
    loading = Loading(data.workers, data.prefetch_mb * 2**20, args.world_size, threads, data.stall_seconds)
    first = done * settings.train.rows_per_step + args.process_index
    datasets = {}
    for split, plan in plans.items():
        builder = RowBuilder(prepared.corpora[split], filler, with_image, store, data.decode)
        # The first rows are decoded while the trainer is set up; those of an evaluation when it comes.
        datasets[split] = RowDataset(plan, builder, loading, first=first if split == "train" else None)
    return datasets


def _check_sharding(args: TrainingArguments, isolation: Isolation) -> None:
    """Ranks that hold shards of each other's weights must run the model equally often.

    Raises:
        ConfigError: if they would wait for each other forever.
    """
    if _is_sharded(args) and not isolation.packs:
        raise ConfigError(
            f"{isolation.reason}, and under FSDP or DeepSpeed a rank cannot run the samples of a row one by one: "
            "install what is missing, or train without sharding"
        )


def _is_sharded(args: TrainingArguments) -> bool:
    return bool(args.fsdp) or args.deepspeed is not None


def _check_isolation(trainer: RowTrainer, out: Reporter) -> None:
    """See for oneself that packed samples are kept apart, with this model, device and attention, before training on it.

    Raises:
        ModelError: if attention lets them see each other.
    """
    model: Any = trainer.model
    forward = trainer.forward
    if not forward.isolation.packs:
        return
    training = model.training
    model.train(False)
    with trainer.accelerator.autocast():
        leakage = forward.leakage(model, model.config.text_config.vocab_size, trainer.args.device)
    model.train(training)
    if leakage < LEAKAGE:
        return
    found = f"packed samples see each other here (logits differ by {leakage:.0%} from those of the sample alone)"
    if not forward.isolation.recurrent:
        raise ModelError(f"{found}; choose another model.attention")
    reason = f"{found}, in spite of the installed kernels"
    trainer.forward = replace(forward, isolation=Isolation(packs=False, reason=reason))
    if is_main_process():
        out.line(f"one sample at a time: {reason}")


def _check_precision(start: Start, precision: torch.dtype) -> None:
    """``auto`` may mean another precision on another machine.

    Raises:
        ConfigError: if the checkpoint was trained in another one.
    """
    before = start.state.get("precision", _name(precision))
    if before != _name(precision):
        raise ConfigError(
            f"{start.checkpoint} was trained in {before}, and model.precision gives {_name(precision)} here; "
            f"set model.precision: {before}"
        )


def _name(precision: torch.dtype) -> str:
    return str(precision).removeprefix("torch.")


def _callbacks(settings: RunSettings, plan: Plan, output: Path, out: Reporter) -> list[TrainerCallback]:
    callbacks: list[TrainerCallback] = [EpochCallback(settings, plan), StopCallback()]
    if is_main_process():
        callbacks += [RunLogCallback(output), ReportCallback(out)]
        board = tensorboard_callback(output, out)
        callbacks += [board] if board else []
    return callbacks


def _print_sizes(sizes: Sequence[PartSize], out: Reporter) -> None:
    """What learns, and how fast."""
    rows = []
    for size in sizes:
        lowest_and_highest = dict.fromkeys((*size.rates[:1], *size.rates[-1:]))
        rates = " to ".join(f"{rate:g}" for rate in lowest_and_highest) or "-"
        rows.append(
            (size.part, *(f"{count:,}" for count in (size.total, size.full, size.adapters, size.frozen)), rates)
        )
    sums = (
        f"{sum(column):,}" for column in zip(*((s.total, s.full, s.adapters, s.frozen) for s in sizes), strict=True)
    )
    heads = ("part", "all", "trained in full", "adapters", "frozen", "learning rate")
    out.table("Parameters", heads, [*rows, ("all", *sums, "")])


def _print_start(
    settings: RunSettings,
    prepared: Prepared,
    plan: Plan,
    precision: torch.dtype,
    checkpoint: Path | None,
    out: Reporter,
) -> None:
    """How much there is to do."""
    corpus = prepared.corpora["train"]
    tokens = int(corpus.lengths.tokens.sum())
    steps = math.ceil(len(plan) / settings.train.rows_per_step)
    out.line(
        f"{prepared.files.family.name}, {settings.model.train}, {str(precision).removeprefix('torch.')}: "
        f"{len(corpus):,} samples of {tokens:,} tokens ({int(corpus.supervised.sum()):,} supervised), "
        f"{len(plan):,} rows in {settings.train.epochs} epochs, {steps:,} steps"
    )
    if checkpoint is not None:
        out.line(f"resuming from {checkpoint}")
