"""The four errors: an unknown key, one that is not supported, another stage, what LLaMA-Factory itself refuses."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from triptych.compat.llamafactory.keys.table import KEYS
from triptych.errors import ConfigError

STAGES = ("pt", "sft", "rm", "ppo", "dpo", "kto")
CHOICES: dict[str, tuple[str, ...]] = {
    "stage": STAGES,
    "finetuning_type": ("lora", "oft", "freeze", "full"),
    "mix_strategy": ("concat", "interleave_under", "interleave_over", "interleave_once"),
    "flash_attn": ("auto", "disabled", "sdpa", "fa2", "fa3"),
    "save_strategy": ("no", "steps", "epoch", "best"),
    "eval_strategy": ("no", "steps", "epoch"),
    "logging_strategy": ("no", "steps", "epoch"),
    "infer_backend": ("huggingface", "vllm", "sglang", "ktransformers"),
}
NOT_SUPPORTED: dict[str, tuple[str, ...]] = {
    "quantization_method": ("bnb",),
    "quantization_type": ("nf4",),
    "train_sampling_strategy": ("random", "group_by_length"),
}


class UnknownKeyError(ConfigError):
    """A key that neither LLaMA-Factory nor transformers has."""


class UnsupportedKeyError(ConfigError):
    """A key or value that changes what is learned, and that Triptych has nothing for."""


class OtherStageError(ConfigError):
    """A file or key for something else than supervised fine-tuning."""


class ContradictionError(ConfigError):
    """Keys or values that LLaMA-Factory refuses too."""


def check_known(given: Mapping[str, Any]) -> None:
    """
    Raises:
        UnknownKeyError: naming each unknown key, with the nearest known one.
    """
    lines = []
    for key in given:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1, cutoff=0.6)
            lines.append(f"unknown key `{key}`" + (f"; did you mean `{near[0]}`?" if near else ""))
    if lines:
        raise UnknownKeyError("\n".join(lines))


def check_stage(values: Mapping[str, Any]) -> None:
    """
    Raises:
        OtherStageError: if the file is not for supervised fine-tuning, naming what is.
    """
    if values["stage"] != "sft" and values["stage"] in STAGES:
        raise OtherStageError(f"`stage: {values['stage']}`: Triptych does supervised fine-tuning, `stage: sft`")
    if not values["do_train"]:
        raise OtherStageError(f"`do_train` is not true, so this file trains nothing; {_other_command(values)}")
    found = [f"`{name}` {KEYS[name].text}" for name in values if KEYS[name].fate == "stage" and _is_set(name, values)]
    if found:
        raise OtherStageError("\n".join(found))


def check_supported(values: Mapping[str, Any]) -> None:
    """
    Raises:
        UnsupportedKeyError: naming each key that changes what is learned and cannot be had, and what to do instead.
    """
    lines = [
        f"`{name}: {_shown(values[name])}` is not supported: {KEYS[name].text}"
        for name in values
        if KEYS[name].fate == "refused" and _is_set(name, values)
    ]
    lines += [f"`{name}: {values[name]}` is not supported: {reason}" for name, reason in _unsupported(values)]
    if lines:
        raise UnsupportedKeyError("\n".join(lines))


def check_consistent(values: Mapping[str, Any]) -> None:
    """
    Raises:
        ContradictionError: naming each combination that LLaMA-Factory refuses, too.
    """
    lines = list(_contradictions(values))
    if lines:
        raise ContradictionError("\n".join(f"{line} (LLaMA-Factory refuses it, too)" for line in lines))


def _is_set(name: str, values: Mapping[str, Any]) -> bool:
    """Whether a key says something else than its default: nothing, false, zero and the empty list are alike."""
    return (values[name] or None) != (KEYS[name].default or None)


def _shown(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _other_command(values: Mapping[str, Any]) -> str:
    if values["export_dir"]:
        return f"use `triptych export DIR --to {values['export_dir']}`"
    if values["do_eval"] or values["do_predict"] or values["predict_with_generate"]:
        return "`triptych eval RUN.yaml --checkpoint DIR` answers the eval data of the file that trained"
    return "write `do_train: true` to train; `triptych chat DIR` talks with a model"


def _unsupported(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Values that Triptych has nothing for, of keys that become settings."""
    if values["finetuning_type"] == "oft":
        yield "finetuning_type", "use lora, full or freeze"
    if values["quantization_bit"] not in (None, 4):
        yield "quantization_bit", "only 4 bits; leave it out to train beside 16-bit weights"
    for name, taken in NOT_SUPPORTED.items():
        if values[name] not in taken:
            yield name, f"it is {' or '.join(taken)} here"
    if not values["double_quantization"]:
        yield "double_quantization", "it is true here"
    if values["save_strategy"] == "best":
        yield "save_strategy", "use steps or epoch, with `load_best_model_at_end: true`"
    if values["logging_strategy"] != "steps":
        yield "logging_strategy", "set `logging_steps`"
    for name in ("logging_steps", "save_steps", "eval_steps"):
        if values[name] is not None and values[name] < 1:
            yield name, "a share of the steps cannot be set; write their number"
    if values["data_seed"] not in (None, values["seed"]):
        yield "data_seed", "one seed decides about everything; leave it out"
    if values["model_revision"] != "main":
        yield "model_revision", "download that revision and give its folder"
    if values["freeze_trainable_modules"] not in (None, ["all"]) and values["finetuning_type"] == "freeze":
        yield "freeze_trainable_modules", "whole layers are frozen, not modules of them"
    if values["finetuning_type"] == "freeze" and not values["freeze_vision_tower"]:
        yield "freeze_vision_tower", "with `finetuning_type: freeze` the tower stays frozen here"
    if values["enable_thinking"] is not True:
        yield "enable_thinking", KEYS["enable_thinking"].text
    adapters = values["adapter_name_or_path"] or []
    if len(adapters) > 1:
        yield "adapter_name_or_path", "merge all but the last into the model first, with `triptych export`"


def _contradictions(values: Mapping[str, Any]) -> Iterator[str]:
    for name, known in CHOICES.items():
        if values[name] not in known:
            yield f"`{name}: {values[name]}`: it is one of {', '.join(known)}"
    yield from _data_contradictions(values)
    yield from _method_contradictions(values)
    if values["bf16"] and values["fp16"]:
        yield "`bf16` and `fp16` at once"
    if values["infer_backend"] != "huggingface":
        yield f"`infer_backend: {values['infer_backend']}` is not for training"
    if values["quantization_device_map"] == "auto":
        yield "`quantization_device_map: auto` is not for training"
    for name in ("gradient_accumulation_steps", "per_device_train_batch_size"):
        if values[name] < 1:
            yield f"`{name}: {values[name]}`: it is at least 1"


def _data_contradictions(values: Mapping[str, Any]) -> Iterator[str]:
    sets, held_out = values["dataset"], values["eval_dataset"]
    if not sets:
        yield "`dataset` is missing, and there is nothing to train on"
    if not values["model_name_or_path"]:
        yield "`model_name_or_path` is missing"
    if held_out and values["val_size"] > 1e-6:
        yield "`val_size` and `eval_dataset` both say what is held out"
    probabilities = values["interleave_probs"]
    if probabilities is not None:
        if values["mix_strategy"] == "concat":
            yield "`interleave_probs` goes with an interleaving `mix_strategy`"
        elif len(probabilities) != len(sets or ()):
            yield f"`interleave_probs` has {len(probabilities)} numbers for {len(sets or ())} data sets"
    if values["streaming"]:
        if values["max_samples"] is not None:
            yield "`max_samples` does not go with `streaming`"
        if 1e-6 < values["val_size"] < 1:
            yield "`val_size` is a number of samples with `streaming`, not a share"
        if values["max_steps"] == -1:
            yield "`streaming` needs `max_steps`"
    if values["mask_history"] and values["train_on_prompt"]:
        yield "`mask_history` and `train_on_prompt` at once"
    evaluates = values["eval_strategy"] != "no"
    asks = [name for name in ("do_eval", "do_predict", "predict_with_generate") if values[name]]
    if (evaluates or asks) and not held_out and values["val_size"] <= 1e-6:
        yield f"`{asks[0] if asks else 'eval_strategy'}` needs `eval_dataset` or `val_size`"
    if values["do_predict"] and not values["predict_with_generate"]:
        yield "`do_predict` needs `predict_with_generate`"
    if values["predict_with_generate"] and values["compute_accuracy"]:
        yield "`predict_with_generate` and `compute_accuracy` at once"


def _method_contradictions(values: Mapping[str, Any]) -> Iterator[str]:
    method = values["finetuning_type"]
    if method not in ("lora", "oft") and values["quantization_bit"] is not None:
        yield "`quantization_bit` goes with `finetuning_type: lora`"
    if method != "lora":
        for name in ("use_rslora", "use_dora", "pissa_init", "loraplus_lr_ratio", "adapter_name_or_path"):
            if values[name]:
                yield f"`{name}` goes with `finetuning_type: lora`"
    if method == "lora" and any(values[name] for name in ("use_galore", "use_apollo", "use_badam")):
        yield "`finetuning_type: lora` does not go with GaLore, APOLLO or BAdam"
