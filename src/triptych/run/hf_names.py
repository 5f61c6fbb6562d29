"""``train.hf``: which arguments of transformers are passed on, which are refused, and what those passed on need.

Three lists hold every argument of ``TrainingArguments``; a test walks the class, so that a new one is not forgotten.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from triptych.errors import ConfigError

Every = int | Literal["epoch"]
"""Optimizer steps between two events."""

PASSED = frozenset(
    [
        "max_steps",
        "lr_scheduler_kwargs",
        "optim",
        "optim_args",
        "optim_target_modules",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "tf32",
        "activation_checkpointing_kwargs",
        "neftune_noise_alpha",
        "torch_empty_cache_steps",
        "logging_first_step",
        "log_on_each_node",
        "log_level",
        "log_level_replica",
        "report_to",
        "run_name",
        "project",
        "trackio_space_id",
        "trackio_bucket_id",
        "trackio_static_space_id",
        "eval_on_start",
        "load_best_model_at_end",
        "metric_for_best_model",
        "full_determinism",
        "use_cpu",
        "dataloader_pin_memory",
        "ddp_find_unused_parameters",
        "ddp_bucket_cap_mb",
        "ddp_backend",
        "ddp_timeout",
        "fsdp",
        "fsdp_config",
        "deepspeed",
        "debug",
        "skip_memory_metrics",
    ]
)
"""Handed to transformers, where they have the effect that their documentation says."""

OWNED = {
    "output_dir": "output",
    "overwrite_output_dir": "output",
    "num_train_epochs": "train.epochs",
    "per_device_train_batch_size": "batch",
    "per_device_eval_batch_size": "batch",
    "gradient_accumulation_steps": "train.rows_per_step",
    "learning_rate": "train.learning_rate",
    "lr_scheduler_type": "train.schedule",
    "warmup_steps": "train.warmup",
    "warmup_ratio": "train.warmup",
    "weight_decay": "train.weight_decay",
    "max_grad_norm": "train.max_grad_norm",
    "seed": "train.seed",
    "data_seed": "train.seed",
    "activation_checkpointing": "train.gradient_checkpointing",
    "gradient_checkpointing": "train.gradient_checkpointing",
    "torch_compile": "train.compile",
    "torch_compile_backend": "train.compile",
    "torch_compile_mode": "train.compile",
    "bf16": "model.precision",
    "fp16": "model.precision",
    "bf16_full_eval": "model.precision",
    "fp16_full_eval": "model.precision",
    "logging_strategy": "train.log_every",
    "logging_steps": "train.log_every",
    "eval_strategy": "train.eval_every",
    "evaluation_strategy": "train.eval_every",
    "eval_steps": "train.eval_every",
    "save_strategy": "train.save_every",
    "save_steps": "train.save_every",
    "save_total_limit": "train.keep_checkpoints",
    "dataloader_num_workers": "data.workers",
    "dataloader_prefetch_factor": "data.prefetch_mb",
    "train_sampling_strategy": "batch",
    "remove_unused_columns": "data.train.0.columns",
}
"""Names of transformers -> the setting that says it here; some are names of older versions."""

_EVALUATION = "evaluation in training gives the loss alone; answers are scored by `triptych eval`: leave it out"
_ORDER = "rows come in the order of the plan, from Triptych's own processes (data.workers): leave it out"
_HUB = "nothing is uploaded in training; use `triptych export DIR --to OUT --push USER/NAME`"
_LOSS = "the loss is plain cross entropy, divided by the supervised tokens of the whole step: leave it out"

REFUSED = {
    "label_smoothing_factor": _LOSS,
    "average_tokens_across_devices": _LOSS + " (it is always so)",
    "use_liger_kernel": "its fused loss would replace Triptych's; see docs/attention.md",
    "liger_kernel_config": "see use_liger_kernel in docs/attention.md",
    "use_cache": "training keeps no cache of keys and values: leave it out",
    "auto_find_batch_size": "rows are planned before training; lower `batch` or data.max_tokens instead",
    "group_by_length": "set batch.group_similar: true, or batch.tokens to pack rows",
    "logging_nan_inf_filter": "a loss that is not a number is always shown: leave it out",
    "logging_dir": "TensorBoard's files go to the folder `tensorboard` of the output: leave it out",
    "include_num_input_tokens_seen": "tokens per second are in every log line: leave it out",
    "disable_tqdm": "the progress bar is Triptych's, and only shows on a terminal: leave it out",
    "eval_delay": "set train.eval_every to the steps at which to evaluate",
    "prediction_loss_only": _EVALUATION,
    "eval_do_concat_batches": _EVALUATION,
    "eval_use_gather_object": _EVALUATION,
    "eval_accumulation_steps": _EVALUATION,
    "include_for_metrics": _EVALUATION,
    "batch_eval_metrics": _EVALUATION,
    "label_names": _EVALUATION,
    "greater_is_better": "the best model is that of the smallest evaluation loss: leave it out",
    "save_only_model": "a checkpoint without optimizer cannot be resumed; lower train.keep_checkpoints to save space",
    "save_on_each_node": "checkpoints are written once; put `output` in a folder that all nodes share",
    "save_safetensors": "weights are always saved as safetensors: leave it out",
    "enable_jit_checkpoint": "on SIGTERM, Triptych itself finishes the step and saves: leave it out",
    "push_to_hub": _HUB,
    "hub_token": _HUB,
    "hub_private_repo": _HUB,
    "hub_model_id": _HUB,
    "hub_strategy": _HUB,
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
    "ignore_data_skip": "a resumed run goes on at the row where it stopped: leave it out",
    "restore_callback_states_from_checkpoint": "`--resume` restores all that shapes the run: leave it out",
    "resume_from_checkpoint": "use `triptych train RUN.yaml --resume`",
    "accelerator_config": _ORDER,
    "parallelism_config": "a row is not split among ranks; shard the weights with train.hf.fsdp or train.hf.deepspeed",
    "dataloader_drop_last": _ORDER,
    "dataloader_persistent_workers": _ORDER,
    "dataloader_multiprocessing_context": _ORDER,
    "dataloader_in_order": _ORDER,
    "length_column_name": _ORDER,
    "gradient_checkpointing_kwargs": "its name is activation_checkpointing_kwargs now",
    "ddp_broadcast_buffers": "ranks may run the model a different number of times, and would wait for each other",
    "ddp_static_graph": "which weights a row uses changes from row to row: leave it out",
    "do_train": "the command says what is done: leave it out",
    "do_eval": "the command says what is done: leave it out",
    "do_predict": "the command says what is done: leave it out",
    "local_rank": "the launcher (torchrun, accelerate launch) says it to each process: leave it out",
    "no_cuda": "set train.hf.use_cpu: true",
}
"""Names of transformers that Triptych would ignore or that would break a promise -> what to do instead."""

_BNB = ("bitsandbytes", "bitsandbytes>=0.46")
_NO_OPTIMIZER = "updates weights within the backward pass, where the rows of a step are not added up yet"
_OPTIMIZER_NEEDS: dict[str, tuple[str, str] | str | None] = {
    **dict.fromkeys(
        ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop", "adamw_torch_npu_fused")
    ),
    "adamw_torch_xla": ("torch_xla", "torch_xla"),
    "adamw_anyprecision": ("torchdistx", "torchdistx"),
    **dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit"), ("torchao", "torchao")),
    **dict.fromkeys(
        [
            "ademamix",
            "adamw_bnb_8bit",
            "adamw_8bit",
            "ademamix_8bit",
            "lion_8bit",
            "lion_32bit",
            "paged_adamw_32bit",
            "paged_adamw_8bit",
            "paged_ademamix_32bit",
            "paged_ademamix_8bit",
            "paged_lion_32bit",
            "paged_lion_8bit",
            "rmsprop_bnb",
            "rmsprop_bnb_8bit",
            "rmsprop_bnb_32bit",
        ],
        _BNB,
    ),
    **dict.fromkeys(("galore_adamw", "galore_adamw_8bit", "galore_adafactor"), ("galore_torch", "galore-torch")),
    "apollo_adamw": ("apollo_torch", "apollo-torch"),
    **dict.fromkeys(
        ("galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise"), _NO_OPTIMIZER
    ),
    **dict.fromkeys(("apollo_adamw_layerwise", "lomo", "adalomo"), _NO_OPTIMIZER),
    "grokadamw": ("grokadamw", "grokadamw"),
    **dict.fromkeys(
        ("schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd"), ("schedulefree", "schedulefree")
    ),
    "stable_adamw": ("optimi", "torch-optimi"),
}
_TRACKER_NEEDS = {
    "azure_ml": ("azureml", "azureml-core"),
    "comet_ml": ("comet_ml", "comet_ml"),
    "mlflow": ("mlflow", "mlflow"),
    "neptune": ("neptune", "neptune"),
    "tensorboard": ("tensorboard", "'triptych[track]'"),
    "trackio": ("trackio", "trackio"),
    "wandb": ("wandb", "wandb"),
    "codecarbon": ("codecarbon", "codecarbon"),
    "clearml": ("clearml", "clearml"),
    "dagshub": ("dagshub", "dagshub mlflow"),
    "flyte": ("flytekit", "flytekit"),
    "dvclive": ("dvclive", "dvclive"),
    "swanlab": ("swanlab", "swanlab"),
    "kubeflow": None,
}


def check_names(hf: Mapping[str, Any], save: Every | None, evaluate: Every | None) -> None:
    """Refuse what would have no effect, or not the one it is set for.

    Args:
        hf: the arguments, by their names in transformers.
        save: steps between checkpoints; None for none.
        evaluate: steps between evaluations; None without evaluation in training.

    Raises:
        ConfigError: naming every such argument, and what to do instead.
    """
    found = [f"`train.hf.{name}`: {reason}" for name in hf if (reason := _why_not(name))]
    found += [f"`train.hf.{name}`: {reason}" for name, reason in _wrong_values(hf)]
    if evaluate is not None:
        found += _best_model(save, evaluate) if hf.get("load_best_model_at_end") else []
    else:
        needs = (name for name in ("load_best_model_at_end", "metric_for_best_model", "eval_on_start") if hf.get(name))
        reason = "there is no evaluation without data.eval, or with train.eval_every: null"
        found += [f"`train.hf.{name}`: {reason}" for name in needs]
    if found:
        raise ConfigError("; ".join(found))


def passed_on(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for transformers: TensorBoard, which Triptych writes in any case, is not written twice."""
    trackers = [name for name in _trackers(hf) if name != "tensorboard"]
    return {**hf, "report_to": trackers or "none"}


def check_packages(hf: Mapping[str, Any], method: str) -> None:
    """See that this machine has what the settings need, before any data is read.

    Args:
        hf: the arguments, by their names in transformers.
        method: ``full``, ``lora`` or ``qlora``.

    Raises:
        ConfigError: naming the setting, and the line that installs what is missing.
    """
    for setting, (module, package) in _needs(hf, method):
        if not _installed(module):
            raise ConfigError(f"{setting} needs {module}, which is not installed: pip install {package}")
    config = hf.get("deepspeed")
    if isinstance(config, str):
        try:
            json.loads(Path(config).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"train.hf.deepspeed: cannot read {config!r}: {error.strerror or error}") from error
        except ValueError as error:
            raise ConfigError(f"train.hf.deepspeed: {config!r} is not valid JSON: {error}") from error


def _why_not(name: str) -> str:
    if name in PASSED:
        return ""
    if name in OWNED:
        return f"use the setting `{OWNED[name]}`"
    if name in REFUSED:
        return REFUSED[name]
    near = difflib.get_close_matches(name, PASSED, n=1, cutoff=0.6)
    return "transformers' TrainingArguments has no such argument" + (f"; did you mean `{near[0]}`?" if near else "")


def _wrong_values(hf: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    optimizer = _optimizer(hf)
    if optimizer not in _OPTIMIZER_NEEDS:
        near = difflib.get_close_matches(str(optimizer), _OPTIMIZER_NEEDS, n=1)
        yield "optim", f"there is no optimizer {optimizer!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    elif isinstance(reason := _OPTIMIZER_NEEDS[optimizer], str):
        yield "optim", f"{optimizer} {reason}; choose another"
    for tracker in _trackers(hf):
        if tracker not in _TRACKER_NEEDS:
            yield "report_to", f"there is no tracker {tracker!r}; name one of {', '.join(_TRACKER_NEEDS)}"
    if hf.get("metric_for_best_model", "loss") not in ("loss", "eval_loss", None):
        yield "metric_for_best_model", "evaluation in training gives the loss alone: set eval_loss"


def _best_model(save: Every | None, evaluate: Every) -> Iterator[str]:
    """Why the best checkpoint cannot be found: it must have been evaluated when it was saved."""
    agree = save == evaluate or (isinstance(save, int) and isinstance(evaluate, int) and save % evaluate == 0)
    if not agree:
        yield (
            f"`train.hf.load_best_model_at_end`: every saved model must be evaluated, but train.save_every is {save} "
            f"and train.eval_every is {evaluate}; set both alike"
        )


def _optimizer(hf: Mapping[str, Any]) -> str:
    return str(hf.get("optim") or "adamw_torch")


def _trackers(hf: Mapping[str, Any]) -> list[str]:
    named = hf.get("report_to")
    names = named if isinstance(named, list) else [] if named is None else [named]
    return [str(name) for name in names if name != "none"]


def _needs(hf: Mapping[str, Any], method: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """(setting, (module, what pip installs)) of the packages that these settings need beside Triptych's own."""
    optimizer = _optimizer(hf)
    if isinstance(need := _OPTIMIZER_NEEDS[optimizer], tuple):
        yield f"train.hf.optim: {optimizer}", need
    for tracker in _trackers(hf):
        if (tracker_need := _TRACKER_NEEDS[tracker]) is not None:
            yield f"train.hf.report_to: {tracker}", tracker_need
    if hf.get("deepspeed"):
        yield "train.hf.deepspeed", ("deepspeed", "deepspeed")
    if hf.get("skip_memory_metrics") is False:
        yield "train.hf.skip_memory_metrics", ("psutil", "psutil")
    if method == "qlora":
        yield "model.train: qlora", ("bitsandbytes", "'triptych[gpu]', or use `train: lora`")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # ValueError: a module without a spec, as a stand-in in a test
        return False
