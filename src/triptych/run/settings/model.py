"""Settings of the model: which one, and which of its weights learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from triptych.family.adapters import check_adapter_folder, check_continued
from triptych.family.recipe import ANY_COUNTS, Recipe, Targets, Train, make_recipe
from triptych.family.selectors import Part, parse_selector
from triptych.run.settings.base import PartOrLayers, Settings, in_pydantic

AttentionName = Literal["auto", "flash_attention_3", "flash_attention_2", "varlen", "sample_sdpa", "sdpa", "eager"]


class LoraSettings(Settings):
    """Low-rank adapters (Hu et al. 2021) through peft."""

    rank: PositiveInt = 16
    """Rank of the adapters."""
    alpha: PositiveFloat = 32.0
    """Scale: the adapters' output is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout in front of the adapters."""
    targets: Targets | dict[PartOrLayers, Targets] = "all-linear"
    """Linear layers to adapt, by the end of their name (``q_proj``), or per part ``{language: [q_proj]}``."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (Kalajdzievski 2023), so that a higher rank does not learn more slowly."""
    dora: bool = False
    """Train the length of every weight row beside the adapters (DoRA, Liu et al. 2024)."""
    experts: bool = False
    """Also adapt the experts of a mixture-of-experts model; costs a copy of their weights while a layer is computed."""

    @model_validator(mode="after")
    def _targets_something(self) -> Self:
        if self.targets in ([], {}) and not self.experts:
            raise ValueError("`targets` names no layer; leave it out to adapt all linear layers")
        if self.experts and (self.dora or self.dropout):
            raise ValueError(
                "`experts` takes neither `dora` nor `dropout`: adapters of experts are added to their weights, and "
                "what goes through them is never seen"
            )
        return self


class ModelSettings(Settings):
    """Which model, and which of its weights learn."""

    path: str
    """Model folder, or a name on the Hugging Face hub."""
    train: Train = "full"
    """Train the weights (``full``), adapters beside them (``lora``), or those beside 4-bit weights (``qlora``)."""
    freeze: list[PartOrLayers] = []
    """What stays as it is: ``vision`` (the tower), ``merger`` (its projector), ``language``, or ``language[:20]``."""
    full: list[PartOrLayers] = []
    """What is trained in full beside the adapters of ``lora`` or ``qlora``, for example ``[merger]``."""
    lora: LoraSettings = LoraSettings()
    """Adapter settings; used with ``train: lora`` and ``qlora``."""
    adapter: str | None = None
    """Adapters to start from: ``lora`` and ``qlora`` go on training them, ``full`` merges them into the model first."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the arithmetic; trained weights are kept in float32. ``auto``: bfloat16 on a GPU that has it."""
    attention: AttentionName = "auto"
    """What computes attention in training; ``auto``: the first of these that works here (docs/attention.md)."""

    @model_validator(mode="after")
    def _methods_agree(self) -> Self:
        for name in ("dora", "rslora", "experts"):
            if self.train == "full" and getattr(self.lora, name):
                raise ValueError(f"`lora.{name}` belongs to adapters; it goes with `train: lora` or `qlora`")
        if not self.has_slices():
            in_pydantic(lambda: self.recipe(ANY_COUNTS))
        return self

    def recipe(self, counts: Mapping[Part, int]) -> Recipe:
        """What learns in a model of which every part has so many layers.

        Raises:
            ConfigError: if the settings contradict each other, or name a layer that is not there.
        """
        return make_recipe(self.train, self.freeze, self.full, self.lora.targets, counts)

    def check_adapter(self) -> None:
        """See that the adapters to start from are there, and of the kind that is to be trained.

        Raises:
            ConfigError: naming the folder that is meant, or each setting that differs.
            ModelError: if their file is damaged.
        """
        if self.adapter is None:
            return
        check_adapter_folder(self.adapter)
        if self.train != "full":
            check_continued(self.adapter, self.lora.model_dump(include={"rank", "alpha", "rslora", "dora"}))

    def has_slices(self) -> bool:
        """Whether what learns depends on the number of the model's layers."""
        targets = self.lora.targets if isinstance(self.lora.targets, dict) else {}
        return any(parse_selector(text).sliced for text in (*self.freeze, *self.full, *targets))
