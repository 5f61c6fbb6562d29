"""Words that people know from other tools, and the setting that each means here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel

SYNONYMS: dict[str, str] = {
    **dict.fromkeys(
        ("model_name_or_path", "model_name", "model_path", "model_id", "base_model", "pretrained_model_name_or_path"),
        "model.path",
    ),
    **dict.fromkeys(("finetuning_type", "train_type", "tuner_type", "method", "use_lora", "use_peft"), "model.train"),
    **dict.fromkeys(("lora_rank", "lora_r", "r"), "model.lora.rank"),
    "lora_alpha": "model.lora.alpha",
    "lora_dropout": "model.lora.dropout",
    **dict.fromkeys(("lora_target", "lora_target_modules", "target_modules"), "model.lora.targets"),
    **dict.fromkeys(("use_dora",), "model.lora.dora"),
    **dict.fromkeys(("use_rslora",), "model.lora.rslora"),
    **dict.fromkeys(("modules_to_save", "additional_target"), "model.full"),
    **dict.fromkeys(
        ("freeze_vision_tower", "freeze_vit", "freeze_aligner", "freeze_llm", "freeze_multi_modal_projector"),
        "model.freeze",
    ),
    **dict.fromkeys(("bf16", "fp16", "dtype", "torch_dtype"), "model.precision"),
    **dict.fromkeys(("flash_attn", "attn_impl", "attn_implementation"), "model.attention"),
    **dict.fromkeys(("dataset", "datasets", "train_file", "train_data", "data_path", "dataset_name"), "data.train"),
    **dict.fromkeys(("eval_dataset", "val_dataset", "eval_file", "validation_file"), "data.eval"),
    **dict.fromkeys(("image_folder", "image_dir", "images_dir", "media_root", "image_root"), "data.train.0.media_dir"),
    **dict.fromkeys(
        ("cutoff_len", "max_length", "max_seq_length", "max_seq_len", "model_max_length"), "data.max_tokens"
    ),
    **dict.fromkeys(("image_max_pixels", "max_image_pixels"), "data.max_pixels"),
    **dict.fromkeys(("image_min_pixels", "min_image_pixels"), "data.min_pixels"),
    **dict.fromkeys(("num_workers", "dataloader_num_workers"), "data.workers"),
    **dict.fromkeys(("batch_size", "per_device_train_batch_size", "micro_batch_size"), "batch.samples"),
    **dict.fromkeys(("packing", "neat_packing", "sample_packing"), "batch.tokens"),
    **dict.fromkeys(("lr", "max_lr", "peak_lr"), "train.learning_rate"),
    **dict.fromkeys(("epochs", "epoch", "num_epochs", "num_train_epochs"), "train.epochs"),
    **dict.fromkeys(("gradient_accumulation_steps", "grad_accum", "accumulate_grad_batches"), "train.rows_per_step"),
    **dict.fromkeys(("lr_scheduler", "lr_scheduler_type", "scheduler"), "train.schedule"),
    **dict.fromkeys(("warmup_steps", "warmup_ratio"), "train.warmup"),
    **dict.fromkeys(("grad_clip", "gradient_clip_val", "clip_grad"), "train.max_grad_norm"),
    **dict.fromkeys(("vit_lr", "vision_lr", "aligner_lr", "merger_lr"), "train.part_learning_rates"),
    **dict.fromkeys(("logging_steps", "log_steps"), "train.log_every"),
    **dict.fromkeys(("save_steps", "save_strategy"), "train.save_every"),
    **dict.fromkeys(("save_total_limit",), "train.keep_checkpoints"),
    **dict.fromkeys(("eval_steps", "eval_strategy", "evaluation_strategy"), "train.eval_every"),
    **dict.fromkeys(("optimizer", "optim"), "train.hf.optim"),
    **dict.fromkeys(("deepspeed", "fsdp"), "train.hf"),
    "max_new_tokens": "eval.max_new_tokens",
    **dict.fromkeys(("output_dir", "out", "save_dir"), "output"),
}


def meant(key: str, settings: type[BaseModel]) -> str | None:
    """The setting that someone means who writes ``key`` in the wrong place, or by another tool's word."""
    if key in SYNONYMS:
        return SYNONYMS[key]
    elsewhere = [path for path in _paths(settings, "") if path.rpartition(".")[2] == key]
    return elsewhere[0] if len(elsewhere) == 1 else None


def _paths(settings: type[BaseModel], prefix: str) -> Iterator[str]:
    """Every setting by its dotted name; those of sources as of the first."""
    for name, field in settings.model_fields.items():
        path = f"{prefix}{name}"
        yield path
        inner = (argument for item in get_args(field.annotation) for argument in (item, *get_args(item)))
        for group in (field.annotation, *inner):
            if isinstance(group, type) and issubclass(group, BaseModel):
                yield from _paths(group, f"{path}.0." if _is_list(field.annotation) else f"{path}.")


def _is_list(annotation: object) -> bool:
    return getattr(annotation, "__origin__", None) is list
