"""LLaMA-Factory's values as Triptych's settings: a pure function, given what dataset_info.json and config.json say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from triptych.compat.llamafactory import checks, method
from triptych.compat.llamafactory.keys.table import KEYS
from triptych.compat.notes import Notes
from triptych.run.hf_names import PASSED
from triptych.sources.lists.dataset_info import Listed


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a translation depends on beside the file."""

    train: Sequence[Listed]
    """The sources that `dataset` names."""
    eval: Sequence[Listed] = ()
    """Those of `eval_dataset`."""
    config: Mapping[str, Any] | None = None
    """Content of the model's config.json, where it is at hand."""
    world_size: int = 1
    """Ranks that will share the rows."""


@dataclass(frozen=True, slots=True)
class Translation:
    """What a run file of another tool becomes."""

    settings: dict[str, Any]
    """Of a native run file; paths as seen from the current folder."""
    notes: Notes = field(default_factory=Notes)
    goes_on: bool = False
    """Whether the run goes on by itself from a checkpoint in its output folder."""


def translate(values: Mapping[str, Any], around: Surroundings) -> Translation:
    """Settings with the same results.

    Args:
        values: of every key, from ``fill``.
        around: what the translation depends on beside the file.

    Raises:
        OtherStageError, UnsupportedKeyError, ContradictionError: see ``checks``.
    """
    checks.check_stage(values)
    checks.check_supported(values)
    checks.check_consistent(values)
    notes = Notes()
    settings = {
        "model": method.model(values, around.config, notes),
        "data": _data(values, around, notes),
        "batch": _batch(values, notes),
        "train": _train(values, around, notes),
        "eval": {"max_new_tokens": values["max_new_tokens"]},
        "output": values["output_dir"] or "trainer_output",
    }
    _note(values, around, notes)
    return Translation(settings, notes, goes_on=not values["overwrite_output_dir"])


def _data(values: Mapping[str, Any], around: Surroundings, notes: Notes) -> dict[str, Any]:
    train = [_source(listed, values) for listed in around.train]
    if values["mix_strategy"] in ("interleave_under", "interleave_over") and len(train) > 1:
        weights = values["interleave_probs"] or ["1"] * len(train)
        train = [{**source, "weight": float(weight)} for source, weight in zip(train, weights, strict=True)]
        notes.differs.append(
            "an epoch of weighted sources has as many samples as all of them together; there it ends with the first "
            "source that is used up (interleave_under), or the last (interleave_over)"
        )
    data: dict[str, Any] = {"train": train}
    if around.eval:
        data["eval"] = [_source(listed, values) for listed in around.eval]
    if values["val_size"] > 1e-6:
        size = values["val_size"]
        data |= {"hold_out": int(size) if size > 1 else size, "hold_out_by": "rows"}
    data |= {
        "resize": "llamafactory",
        "max_pixels": values["image_max_pixels"],
        "min_pixels": values["image_min_pixels"],
    }
    data |= {"max_tokens": values["cutoff_len"], "too_long": "drop" if _packs(values) else "shrink"}
    if values["train_on_prompt"] or values["mask_history"]:
        data["supervise"] = "everything" if values["train_on_prompt"] else "last"
    if values["default_system"] is not None:
        data["system"] = values["default_system"]
    if any(listed.remote for listed in (*around.train, *around.eval)):
        data["allow_remote"] = True
    return data | {"workers": values["dataloader_num_workers"]}


def _source(listed: Listed, values: Mapping[str, Any]) -> dict[str, Any]:
    media = values["media_dir"] or values["dataset_dir"]
    first = values["max_samples"]
    return {**listed.source, "media_dir": media} | ({} if first is None else {"first": first})


def _packs(values: Mapping[str, Any]) -> bool:
    return bool(values["packing"] or values["neat_packing"])


def _batch(values: Mapping[str, Any], notes: Notes) -> dict[str, Any]:
    by_length = values["group_by_length"] or values["train_sampling_strategy"] == "group_by_length"
    if not _packs(values):
        if by_length:
            notes.dropped.append("`group_by_length`: rows have no padding that it could save")
        return {"samples": values["per_device_train_batch_size"]}
    if not values["neat_packing"]:
        notes.differs.append("packed samples never see each other, as there with `neat_packing: true`")
    if values["per_device_train_batch_size"] > 1:
        notes.differs.append(
            f"a batch of {values['per_device_train_batch_size']} packed rows of {values['cutoff_len']:,} tokens is one "
            "row of as many tokens together"
        )
    tokens = values["cutoff_len"] * values["per_device_train_batch_size"]
    return {"tokens": tokens} | ({"group_similar": True} if by_length else {})


def _train(values: Mapping[str, Any], around: Surroundings, notes: Notes) -> dict[str, Any]:
    epochs = values["num_train_epochs"]
    rows = values["gradient_accumulation_steps"] * around.world_size
    warmup = values["warmup_steps"] or values["warmup_ratio"] or 0.0
    train: dict[str, Any] = {
        "epochs": int(epochs) if epochs == int(epochs) else epochs,
        "learning_rate": values["learning_rate"],
        "rows_per_step": rows,
        "schedule": values["lr_scheduler_type"],
        "warmup": int(warmup) if warmup >= 1 else warmup,
        "weight_decay": values["weight_decay"],
        "max_grad_norm": values["max_grad_norm"],
        "gradient_checkpointing": values["gradient_checkpointing"] or not values["disable_gradient_checkpointing"],
        "seed": values["seed"],
        "log_every": int(values["logging_steps"]),
        "save_every": {"steps": int(values["save_steps"]), "epoch": "epoch", "no": None}[values["save_strategy"]],
        "keep_checkpoints": values["save_total_limit"],
    }
    if rows > 1:
        train["average"] = "rows"
    if values["max_steps"] > 0:
        train |= {"epochs": None, "max_steps": values["max_steps"]}
    if values["disable_shuffling"]:
        train["shuffle"] = False
    else:
        notes.differs.append("samples are shuffled by another generator: steps hold other samples for the same seed")
    if values["torch_compile"]:
        train["compile"] = True
    if around.eval or values["val_size"] > 1e-6:
        steps = int(values["eval_steps"] or values["logging_steps"])
        train["eval_every"] = {"steps": steps, "epoch": "epoch", "no": None}[values["eval_strategy"]]
    hf = _hf(values, around, notes)
    return train | ({"hf": hf} if hf else {})


def _hf(values: Mapping[str, Any], around: Surroundings, notes: Notes) -> dict[str, Any]:
    hf = {
        name: values[name]
        for name, key in KEYS.items()
        if key.fate == "passed" and values[name] != key.default and values[name] is not None and name in PASSED
    }
    trackers = [name for name in values["report_to"] or () if name != "none"]
    if trackers:
        hf["report_to"] = trackers
    if values["deepspeed"] and around.world_size > 1:
        hf["deepspeed"] = values["deepspeed"]
    elif values["deepspeed"]:
        notes.dropped.append(
            "`deepspeed`: one process has nothing to shard; with several it is passed on (set train.hf.deepspeed to "
            "have its offloading with one)"
        )
    return hf


def _note(values: Mapping[str, Any], around: Surroundings, notes: Notes) -> None:
    """What is said of any file, and of keys that nothing follows from."""
    notes.differs += [
        f"samples over {values['cutoff_len']:,} tokens: "
        + (
            "left out"
            if _packs(values)
            else "their images are made smaller; those that still do not fit are errors, or set data.too_long=cut_text"
        )
        + "; there the text is cut, even within an image",
        "records that are skipped there with a warning are errors here; data.on_error=skip leaves them out and lists "
        "them",
        "images are turned as their EXIF orientation says, and what is transparent is white; there they are not",
    ]
    if any(listed.sampled is not None for listed in (*around.train, *around.eval)):
        notes.differs.append("`num_samples` of a data set draws other samples for the same seed")
    for name, key in KEYS.items():
        if (values[name] or None) == (key.default or None):
            continue
        if key.fate == "dropped":
            notes.dropped.append(f"`{name}`: {key.text}")
        elif key.fate == "after":
            notes.must_do.append(f"`{name}`: {key.text}")
        elif key.fate == "passed" and name not in PASSED:
            notes.dropped.append(f"`{name}`: this version of Triptych does not pass it on")
    if around.world_size == 1:
        notes.must_do.append("several GPUs: accelerate launch -m triptych train ...; rows per step follow their number")
