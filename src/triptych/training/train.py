"""Train: plan the run, hand rows to transformers' Trainer, normalise the loss over the step's supervised tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, TrainerCallback, set_seed

from triptych.errors import ConfigError, ModelError
from triptych.estimate.devices import target_here
from triptych.estimate.fit import fitted
from triptych.estimate.forecast import Forecast
from triptych.family import fingerprint
from triptych.family.folders import STATE
from triptych.forward.attention import Attention
from triptych.forward.batch import RowDataset
from triptych.forward.isolation import Isolation
from triptych.forward.row_forward import RowForward
from triptych.model.compile import check_compiler, compile_layers
from triptych.model.loading import PixelNormalizer, ProcessorFiles
from triptych.model.parts import PartSize, learning_parts, part_sizes
from triptych.model.trainable import parameter_rates
from triptych.model.trained import quiet_loading
from triptych.recovery import resources
from triptych.recovery.output_folder import FINAL
from triptych.recovery.resume import RUN_FILE, Start, fresh, lost_samples
from triptych.rows.builder import RowBuilder
from triptych.rows.feature_store import FeatureReader
from triptych.rows.loader import Loading, threads_per_worker
from triptych.run import run_file
from triptych.run.prepare import Prepared, Split, is_main_process
from triptych.run.reporter import Reporter
from triptych.run.settings import RunSettings
from triptych.run.settings.training import EVAL_LOSS
from triptych.training.callbacks import EpochCallback, PatienceCallback, StopCallback
from triptych.training.context import TrainingContext, make_context, name_of
from triptych.training.feature_setup import Features, open_features
from triptych.training.setup import load_for_training
from triptych.training.trainer import RowTrainer
from triptych.training.watch.live import live_callback, reported
from triptych.training.watch.progress import ReportCallback
from triptych.training.watch.summary import write_summary
from triptych.training.watch.trackers import RunLogCallback, tensorboard_callback, tolerate_trackers

if TYPE_CHECKING:
    from peft import PeftModel

LEAKAGE = 0.1
"""Relative difference of logits above which it is no rounding; bfloat16 was seen to give 0.01, leaks 0.6 and more."""


@quiet_loading()
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
    settings = _with_rows(settings, prepared, out)
    context = make_context(settings, prepared, start)
    start.stop.check()
    set_seed(settings.train.seed)  # adapters start from random weights
    if is_main_process():
        out.line(f"loading {settings.model.path} ...")
    model, attention = _load(context)
    start.stop.check()
    rates = parameter_rates(model, context.family, settings)
    features = open_features(context, model)
    _check_sharding(context)
    if is_main_process():
        _print_sizes(part_sizes(model, context.family, rates), out)
        _print_start(context, out)
        out.line(str(attention))
        if not context.isolation.packs:
            out.line(f"one sample at a time: {context.isolation.reason}")
        out.line(features.decision.line)
        if context.shared:
            out.line(context.shared)
    trainer = _trainer(context, model, attention, rates, features, out)
    start.stop.check()
    try:
        with reported(trainer.callback_handler.callbacks, out):
            _run(trainer, start)
            final = context.output / FINAL
            trainer.save_final(final)
    finally:
        stored = features.close()
        if stored:
            out.line(stored)
    if is_main_process():
        _summarize(trainer, context, out)
    return final


def _load(context: TrainingContext) -> tuple[PreTrainedModel | PeftModel, Attention]:
    """The model as it trains."""
    settings, start = context.settings, context.settings.model
    if context.start.checkpoint is not None:  # which holds what became of the adapters that the run started from
        start = start.model_copy(update={"adapter": None})
    model, attention = load_for_training(
        start,
        context.family,
        context.precision,
        context.args.device,
        context.isolation,
        checkpointing=settings.train.gradient_checkpointing,
        shares=context.share == "starts",
    )
    model.config.use_cache = False
    if settings.train.compile:
        check_compiler(context.args.device)
        compile_layers(model, context.family)
    return model, attention


def _trainer(
    context: TrainingContext,
    model: PreTrainedModel | PeftModel,
    attention: Attention,
    rates: Mapping[str, float],
    features: Features,
    out: Reporter,
) -> RowTrainer:
    """Trainer over the planned rows, its packing checked with this model."""
    settings, files = context.settings, context.prepared.files
    note = context.start.note() | {"feature_cache": features.decision.on, "precision": name_of(context.precision)}
    if is_main_process():  # the one that writes
        note["base"] = context.start.state.get("base") or fingerprint.note(settings.model.path)
    extra = {RUN_FILE: run_file.to_yaml(settings), STATE: json.dumps(note)}
    learning = learning_parts(model, context.family)
    together = context.args.world_size > 1 and (context.sharded or not learning.isdisjoint(("vision", "merger")))
    datasets = _datasets(context, features.reader, with_image=together)
    callbacks = _callbacks(context, model, attention, out)
    trainer = RowTrainer(
        model=model,
        context=context,
        train_dataset=datasets["train"],
        eval_dataset=datasets.get("eval"),
        processing_class=ProcessorFiles(files, context.prepared.encoder.geometry, extra),
        forward=RowForward(
            PixelNormalizer(files), context.isolation, attention, features.cache, settings.train.logits_bytes
        ),
        rates=rates,
        out=out,
        callbacks=callbacks,
    )
    for callback in callbacks:
        if isinstance(callback, StopCallback):
            callback.signal = trainer.signal_to_stop
    if not context.sharded:
        _check_isolation(trainer, context, out)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    tolerate_trackers(trainer, out)
    return trainer


def _run(trainer: RowTrainer, start: Start) -> None:
    """All steps that are left, to the end or to a signal."""
    start.stop.phase = "training"
    try:
        trainer.train(resume_from_checkpoint=str(start.checkpoint) if start.checkpoint else None)
        start.stop.phase = "end"
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, ReportCallback):
                callback.close()


def _summarize(trainer: RowTrainer, context: TrainingContext, out: Reporter) -> None:
    output, plan = context.output, context.plans["train"]
    try:
        write_summary(output, trainer.state.log_history, plan, len(lost_samples(output)), out)
    except OSError as error:
        out.line(f"no summary: {resources.explain(error, output) or error}; the model is written")


def _with_rows(settings: RunSettings, prepared: Prepared, out: Reporter) -> RunSettings:
    """The run with rows of a size: under ``batch: auto`` the largest that fit."""
    if not settings.batch.auto:
        return settings
    forecast = Forecast(settings, prepared.files, target_here(settings.model))
    found = fitted(forecast, *prepared.corpora.values())
    if is_main_process():
        out.line(f"batch: auto: rows of {found.batch.tokens:,} tokens on {forecast.target.name}")
    return found


def _datasets(context: TrainingContext, store: FeatureReader | None, *, with_image: bool) -> dict[Split, RowDataset]:
    """The rows of each split, from the first step that is not done on.

    With ``with_image``, ranks that run the tower together all run it, on every row.
    """
    prepared, data, args = context.prepared, context.settings.data, context.args
    threads = threads_per_worker(data.workers)
    loading = Loading(data.workers, data.prefetch_mb * 2**20, args.world_size, threads, data.stall_seconds)
    first = context.start.step * context.settings.train.rows_per_step + args.process_index
    datasets = {}
    for split, plan in context.plans.items():
        filler = prepared.encoder.template.filler()
        share = context.share if split == "train" else "nothing"
        builder = RowBuilder(prepared.corpora[split], filler, with_image, store, data.decode, share)
        # The first rows are decoded while the trainer is set up; those of an evaluation when it comes.
        datasets[split] = RowDataset(plan, builder, loading, first=first if split == "train" else None)
    return datasets


def _check_sharding(context: TrainingContext) -> None:
    """Ranks that hold shards of each other's weights must run the model equally often.

    Raises:
        ConfigError: if they would wait for each other forever.
    """
    if context.sharded and not context.isolation.packs:
        raise ConfigError(
            f"{context.isolation.reason}, and under FSDP or DeepSpeed a rank cannot run the samples of a row one by "
            "one: install what is missing, or train without sharding"
        )
    metric = context.settings.train.metric
    if context.sharded and metric != EVAL_LOSS:
        raise ConfigError(
            f"train.metric: {metric} needs generated answers, which ranks that share weights cannot write while they "
            f"train; set train.metric: {EVAL_LOSS}, or train without sharding"
        )


def _check_isolation(trainer: RowTrainer, context: TrainingContext, out: Reporter) -> None:
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
        vocabulary, device = model.config.text_config.vocab_size, trainer.args.device
        leakage = forward.leakage(model, vocabulary, device)
        if context.share == "starts":
            leakage = max(leakage, forward.leakage(model, vocabulary, device, shared=True))
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


def _callbacks(
    context: TrainingContext, model: PreTrainedModel | PeftModel, attention: Attention, out: Reporter
) -> list[TrainerCallback]:
    settings = context.settings
    callbacks: list[TrainerCallback] = [
        EpochCallback(settings, context.plans["train"]),
        PatienceCallback(settings, out),
    ]
    if is_main_process():
        board = tensorboard_callback(context.output, out)
        callbacks += [RunLogCallback(context.output), ReportCallback(out), *([board] if board else [])]
        callbacks.append(live_callback(context, model, attention, board, out))
    return [*callbacks, StopCallback()]  # the last one, since it ends the run after a checkpoint


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


def _print_start(context: TrainingContext, out: Reporter) -> None:
    """How much there is to do."""
    settings, corpus, rows = context.settings, context.prepared.corpora["train"], len(context.plans["train"])
    tokens = int(corpus.lengths.tokens.sum())
    steps = math.ceil(rows / settings.train.rows_per_step)
    epochs = context.plans["train"].epochs
    out.line(f"{context.family.name}, {settings.model.train}, {name_of(context.precision)}")
    out.line(f"{len(corpus):,} samples of {tokens:,} tokens ({int(corpus.supervised.sum()):,} supervised)")
    out.line(f"{rows:,} rows in {epochs:.4g} epoch{'s' * (epochs != 1)}, {steps:,} steps")
    wanted = settings.train.max_steps
    if wanted is not None and steps < wanted:
        found = f"{wanted:,} steps are not reached in {settings.train.epochs:g} epochs"
        out.line(f"train.max_steps: {found}; raise train.epochs")
    if context.start.checkpoint is not None:
        out.line(f"resuming from {context.start.checkpoint}")
