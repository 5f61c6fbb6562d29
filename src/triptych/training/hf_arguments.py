"""A run's settings as the arguments of transformers' ``Trainer``."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import TrainingArguments

from triptych.errors import ConfigError
from triptych.run.prepare import rows_per_rank
from triptych.run.settings import RunSettings

# Arguments of transformers that Triptych sets from its own settings or cannot work without.
OWNED = {
    "output_dir": "output",
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
    "activation_checkpointing": "train.gradient_checkpointing",
    "gradient_checkpointing": "train.gradient_checkpointing",
    "torch_compile": "train.compile",
    "bf16": "model.precision",
    "fp16": "model.precision",
    "dataloader_num_workers": "data.workers",
    "dataloader_prefetch_factor": "data.prefetch_mb",
    "train_sampling_strategy": "batch",
    "remove_unused_columns": "batch",
}

# Arguments of transformers that would change what is computed, without a word.
REFUSED = {
    "use_liger_kernel": "its fused loss would replace Triptych's; see docs/attention.md",
    "liger_kernel_config": "see use_liger_kernel in docs/attention.md",
}


def training_arguments(settings: RunSettings, precision: torch.dtype) -> TrainingArguments:
    """TrainingArguments of transformers for these settings.

    Raises:
        ConfigError: if ``train.hf`` names an argument that has a setting of its own or does not exist.
    """
    train, data = settings.train, settings.data
    for name in train.hf:
        if name in OWNED:
            raise ConfigError(f"train.hf.{name}: use the setting `{OWNED[name]}`")
        if name in REFUSED:
            raise ConfigError(f"train.hf.{name}: {REFUSED[name]}")
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    accumulated = rows_per_rank(settings, world_size)
    has_eval = bool(data.eval)
    arguments: dict[str, Any] = {
        "output_dir": settings.output,
        "num_train_epochs": 1,  # the plan holds all epochs
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": accumulated,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.schedule,
        "warmup_steps": train.warmup,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "seed": train.seed,
        "bf16": precision is torch.bfloat16,
        "dataloader_num_workers": 0,  # rows come from processes of our own, see rows/loader.py
        "dataloader_pin_memory": torch.cuda.is_available(),
        "train_sampling_strategy": "sequential",  # the plan is the order
        "remove_unused_columns": False,
        "logging_steps": train.log_every,
        "logging_nan_inf_filter": False,  # a loss that is not a number is shown as one
        "save_strategy": "no" if train.save_every == "epoch" else "steps",  # epochs: EpochCallback
        "save_steps": train.save_every if isinstance(train.save_every, int) else 500,
        "save_total_limit": train.keep_checkpoints,
        "eval_strategy": "steps" if has_eval and isinstance(train.eval_every, int) else "no",
        "eval_steps": train.eval_every if isinstance(train.eval_every, int) else None,
        # Without this, ranks of a launcher do not find each other where there is no accelerator.
        "use_cpu": not torch.accelerator.is_available(),
        "report_to": "none",  # TensorBoard is added as a callback with a folder of its own
        "disable_tqdm": True,
        "ddp_find_unused_parameters": False,
        # The model's buffers are constants; ranks may run it a different number of times (see isolation.py).
        "ddp_broadcast_buffers": False,
    }
    try:
        args = TrainingArguments(**{**arguments, **train.hf})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"train: {error}") from error
    if args.world_size != world_size:
        raise ConfigError(f"the launcher started {world_size} ranks, transformers found {args.world_size}")
    if args.fsdp and not torch.accelerator.is_available():
        raise ConfigError("train.hf.fsdp: no accelerator is there, and transformers would not shard; leave it out")
    if args.n_gpu > 1:
        raise ConfigError(
            "several GPUs need a launcher: accelerate launch -m triptych train ..., or CUDA_VISIBLE_DEVICES=0"
        )
    return args
