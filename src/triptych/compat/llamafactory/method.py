"""Which model, and which of its weights learn, by LLaMA-Factory's values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triptych.compat.llamafactory.checks import ContradictionError, UnsupportedKeyError
from triptych.compat.notes import Notes

ATTENTION = {"disabled": "eager", "fa2": "flash_attention_2", "fa3": "flash_attention_3"}
TEMPLATES: dict[str, tuple[str, ...]] = {
    "qwen2_vl": ("qwen2_vl", "qwen2_5_vl"),
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_nothink"), ("qwen3_vl", "qwen3_vl_moe")),
    **dict.fromkeys(("qwen3_5", "qwen3_5_nothink", "qwen3_6"), ("qwen3_5", "qwen3_5_moe")),
}
"""Templates there -> `model_type` of the models that they render for."""
DEEPSTACK = ("qwen3_vl", "qwen3_vl_moe")
LINEAR_NAMES = frozenset(
    {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv", "fc1", "fc2"),
        *("linear_fc1", "linear_fc2", "in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj"),
    }
)
"""Whole names of linear layers, which mean the same as an end of a name (here) and as a part of one (there)."""
MERGERS = {"visual.merger": ("merger",), "merger": ("merger",), "visual": ("vision", "merger")}


def model(values: Mapping[str, Any], config: Mapping[str, Any] | None, notes: Notes) -> dict[str, Any]:
    """Settings of the group ``model``.

    Args:
        values: of every key.
        config: content of the model's config.json; None where it is not at hand.
        notes: gets what differs.

    Raises:
        UnsupportedKeyError: for modules or layers that cannot be named here.
        ContradictionError: for a template of another family.
    """
    model_type = None if config is None else str(config.get("model_type"))
    _check_template(values, model_type, notes)
    lora = values["finetuning_type"] == "lora"
    found: dict[str, Any] = {
        "path": values["model_name_or_path"],
        "train": "qlora" if values["quantization_bit"] else "lora" if lora else "full",
    }
    if values["adapter_name_or_path"]:
        found["adapter"] = values["adapter_name_or_path"][0]
    full = _full(values) if lora else []
    freeze = [part for part in _frozen(values, model_type, notes) if part not in full]
    found |= {"freeze": freeze} if freeze else {}
    if values["finetuning_type"] == "freeze":
        found["freeze"] = ["vision", "merger", *_frozen_layers(values, config)]
    if lora:
        found |= {"full": full} if full else {}
        found["lora"] = _lora(values)
    found["precision"] = "bfloat16" if values["bf16"] else "float32"
    return found | {"attention": ATTENTION.get(values["flash_attn"], values["flash_attn"])}


def _check_template(values: Mapping[str, Any], model_type: str | None, notes: Notes) -> None:
    name = values["template"]
    if name is None:
        notes.differs.append("`template` is left out, which fails there with images; the model's own is used here")
        return
    if name not in TEMPLATES:
        known = ", ".join(TEMPLATES)
        raise UnsupportedKeyError(f"`template: {name}` is of a model that Triptych does not train; these are: {known}")
    if model_type is not None and model_type not in TEMPLATES[name]:
        fitting = [template for template, types in TEMPLATES.items() if model_type in types]
        raise ContradictionError(
            f"`template: {name}` does not fit {values['model_name_or_path']}, which is a {model_type}"
            + (f"; write {' or '.join(fitting)}" if fitting else "")
        )
    if name in ("qwen3_vl", "qwen3_5", "qwen3_6"):
        notes.differs.append(
            f"`template: {name}` puts an empty thinking block before each answer that has none and trains on it; here "
            "answers are rendered as the model's own chat template does"
        )


def _frozen(values: Mapping[str, Any], model_type: str | None, notes: Notes) -> list[str]:
    vision, merger = values["freeze_vision_tower"], values["freeze_multi_modal_projector"]
    deep = model_type in DEEPSTACK
    if values["finetuning_type"] == "lora" and not merger and (vision or not deep):
        merger = True  # adapters go on linear layers whose names the tower or the language model have, too
    if deep and vision != merger:
        notes.differs.append(
            "the deepstack mergers of Qwen3-VL belong to the merger here and to the tower there: they "
            + ("learn here" if vision else "do not learn here")
        )
    parts = {"vision": vision, "merger": merger, "language": values["freeze_language_model"]}
    return [part for part, frozen in parts.items() if frozen]


def _full(values: Mapping[str, Any]) -> list[str]:
    """Parts that are trained in full beside the adapters."""
    found: list[str] = []
    for name in values["additional_target"] or ():
        if name not in MERGERS:
            raise UnsupportedKeyError(
                f"`additional_target: {name}` is not supported: whole parts can be trained beside adapters, by "
                f"the names {', '.join(MERGERS)}"
            )
        found += [part for part in MERGERS[name] if part not in found]
    return found


def _frozen_layers(values: Mapping[str, Any], config: Mapping[str, Any] | None) -> list[str]:
    """All of the language model but its last (for a negative number: first) layers."""
    text = {} if config is None else config.get("text_config") or config
    layers, wanted = text.get("num_hidden_layers"), values["freeze_trainable_layers"]
    if not isinstance(layers, int):
        raise UnsupportedKeyError(
            "`finetuning_type: freeze` needs the number of the model's layers; give its folder in `model_name_or_path`"
        )
    if not wanted:
        raise ContradictionError("`freeze_trainable_layers: 0` leaves nothing to learn")
    first, last = (max(0, layers - wanted), layers) if wanted > 0 else (0, min(layers, -wanted))
    return [f"language[:{first}]", f"language[{last}:]"]


def _lora(values: Mapping[str, Any]) -> dict[str, Any]:
    targets = values["lora_target"]
    wrong = [name for name in targets if name not in LINEAR_NAMES] if targets != ["all"] else []
    if wrong:
        raise UnsupportedKeyError(
            f"`lora_target: {wrong[0]}` is not supported: it is a part of a name there, and here the name of a linear "
            f"layer, such as q_proj; write `all`, or some of {', '.join(sorted(LINEAR_NAMES))}"
        )
    rank = values["lora_rank"]
    found = {
        "rank": rank,
        "alpha": values["lora_alpha"] or 2 * rank,
        "dropout": values["lora_dropout"],
        "targets": "all-linear" if targets == ["all"] else targets,
    }
    found |= {here: True for there, here in (("use_rslora", "rslora"), ("use_dora", "dora")) if values[there]}
    return found
