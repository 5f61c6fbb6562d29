"""Folders of adapters: what their small file says, and whether a run can go on from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.errors import ConfigError, ModelError
from triptych.family.folders import ADAPTER_CONFIG, CONFIG, read_json, why_missing, why_no_model


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What a folder of adapters says about them."""

    rank: int
    alpha: float
    rslora: bool
    dora: bool
    mixed: bool
    """Whether some layers have a rank or scale of their own"""


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read ``adapter_config.json``.

    Raises:
        ModelError: in one sentence, if it cannot be read, is damaged, or is of adapters other than LoRA.
    """
    content = read_json(folder, ADAPTER_CONFIG, str(folder))
    kind = content.get("peft_type")
    if kind not in (None, "LORA"):
        raise ModelError(f"{folder} holds adapters of the kind {kind}; Triptych trains, merges and exports LoRA")
    values = _Values(folder, content)
    targets = content.get("target_modules") or content.get("target_parameters")
    if not isinstance(targets, str | list) or not targets:
        raise values.damaged("target_modules", content.get("target_modules"))
    return AdapterConfig(
        rank=int(values.number("r")),
        alpha=values.number("lora_alpha"),
        rslora=bool(content.get("use_rslora")),
        dora=bool(content.get("use_dora")),
        mixed=bool(content.get("rank_pattern") or content.get("alpha_pattern")),
    )


class _Values:
    def __init__(self, folder: Path, content: Mapping[str, Any]) -> None:
        self._folder, self._content = folder, content

    def number(self, name: str) -> float:
        value = self._content.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise self.damaged(name, value)
        return float(value)

    def damaged(self, name: str, value: Any) -> ModelError:
        return ModelError(
            f"{self._folder}/{ADAPTER_CONFIG} is damaged: {name} is {value!r}; restore it from a copy, or train again"
        )


def check_adapter_folder(path: str) -> Path:
    """The folder that ``model.adapter`` names.

    Raises:
        ConfigError: if it holds no adapters, naming the folder that is meant where there is one.
    """
    folder = Path(path)
    if (folder / ADAPTER_CONFIG).exists():
        return folder
    if not folder.is_dir():
        raise ConfigError(f"model.adapter: no folder {path}{why_missing(path)}")
    if (folder / CONFIG).exists():
        raise ConfigError(
            f"model.adapter: {path} holds a whole model, not adapters; to start from it, set model.path: {path}, and "
            "leave model.adapter out"
        )
    raise ConfigError(f"model.adapter: {why_no_model(folder) or f'{path} holds no {ADAPTER_CONFIG}'}")


def check_continued(path: str, wanted: Mapping[str, Any]) -> None:
    """See that a run's adapters are of the kind of those that it starts from.

    Args:
        path: ``model.adapter``.
        wanted: the settings ``rank``, ``alpha``, ``rslora`` and ``dora`` of ``model.lora``.

    Raises:
        ConfigError: naming each setting that differs, with both values.
        ModelError: if the adapters' file is damaged.
    """
    found = read_adapter_config(Path(path))
    if found.mixed:
        raise ConfigError(
            f"model.adapter: layers of {path} have ranks or scales of their own, and such adapters cannot go on "
            "learning here; merge them first: train: full, or `triptych export`"
        )
    differing = [
        f"model.lora.{name} is {value}, and {getattr(found, name):g} in {path}"
        if not isinstance(value, bool)
        else f"model.lora.{name} is {str(value).lower()}, and {str(getattr(found, name)).lower()} in {path}"
        for name, value in wanted.items()
        if value != getattr(found, name)
    ]
    if differing:
        raise ConfigError(f"model.adapter: {'; '.join(differing)}: set them alike to go on training these adapters")
