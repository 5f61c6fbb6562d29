"""A run's settings as the arguments of transformers' ``Trainer``."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import TrainingArguments

from triptych.errors import ConfigError
from triptych.run.hf_names import passed_on
from triptych.run.prepare import rows_per_rank
from triptych.run.settings import RunSettings
from triptych.run.settings.training import EVAL_LOSS


def training_arguments(settings: RunSettings, precision: torch.dtype) -> TrainingArguments:
    """TrainingArguments of transformers for these settings.

    Raises:
        ConfigError: if transformers refuses a value, or finds other devices than the launcher started ranks for.
    """
    train, data = settings.train, settings.data
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    accumulated = rows_per_rank(settings, world_size)
    has_eval = data.evaluates
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
        "save_strategy": "steps" if isinstance(train.save_every, int) else "no",  # epochs: EpochCallback
        "save_steps": train.save_every if isinstance(train.save_every, int) else 500,
        "save_total_limit": train.keep_checkpoints,
        "eval_strategy": "steps" if has_eval and isinstance(train.eval_every, int) else "no",
        "eval_steps": train.eval_every if isinstance(train.eval_every, int) else None,
        # Without this, ranks of a launcher do not find each other where there is no accelerator.
        "use_cpu": not torch.accelerator.is_available(),
        "disable_tqdm": True,
        "ddp_find_unused_parameters": False,
        # The model's buffers are constants; ranks may run it a different number of times (see isolation.py).
        "ddp_broadcast_buffers": False,
    }
    if train.keeps_best:
        arguments |= {
            "load_best_model_at_end": True,
            "metric_for_best_model": train.metric,
            "greater_is_better": train.metric != EVAL_LOSS,
        }
    try:
        args = TrainingArguments(**{**arguments, **passed_on(train.hf)})
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
