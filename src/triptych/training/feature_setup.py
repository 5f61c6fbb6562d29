"""Decide about a run's feature cache and open it, the same on every rank."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel

from triptych.errors import ConfigError
from triptych.forward.feature_cache import ABOUT, FeatureCache, FeatureWriter, describe_tower, tower_key
from triptych.model.loading import PixelNormalizer
from triptych.model.parts import learning_parts
from triptych.rows.feature_store import FeatureReader
from triptych.run.feature_forecast import Decision, decide, feature_shape, forecast, measure_room, refusal, store_folder
from triptych.run.prepare import is_main_process
from triptych.training.context import TrainingContext

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True, slots=True)
class Features:
    """A run's feature cache."""

    decision: Decision
    reader: FeatureReader | None = None
    """For the data loader's workers; None where the cache is off."""
    cache: FeatureCache | None = None
    """For the forward pass"""

    def close(self) -> str:
        """Write what waits; returns what to say about it."""
        if self.cache is None:
            return ""
        writer = self.cache.writer
        writer.close()
        text = f"feature cache: {writer.stored:,} images stored in {self.cache.writer.folder}" if writer.stored else ""
        if writer.left_out:
            reason = (
                f"writing failed: {writer.error}" if writer.error else "the disk was too slow, or the limit reached"
            )
            text += f"{', ' if text else 'feature cache: '}{writer.left_out:,} not ({reason})"
        return text


@dataclass(frozen=True, slots=True)
class _Agreed:
    """What the first rank tells the others."""

    decision: Decision
    key: str = ""
    room: int = 0
    error: str = ""


def open_features(context: TrainingContext, model: PreTrainedModel | PeftModel) -> Features:
    """The feature cache of a run; every rank calls this, and the first one decides.

    Args:
        context: of the run.
        model: set up for training, its weights still as loaded.

    Raises:
        ConfigError: if it is asked for and impossible, or there is no room for it.
    """
    settings, prepared, args = context.settings, context.prepared, context.args
    said: list[Any] = [None]
    if is_main_process():
        try:
            said = [_decide(context, model)]
        except OSError as error:  # the other ranks wait for an answer
            reason = f"{store_folder()} cannot be used: {error}"
            wanted = settings.train.feature_cache == "on"
            said = [
                _Agreed(
                    Decision(False, f"feature cache off: {reason}"),
                    error=f"train.feature_cache: on, but {reason}" if wanted else "",
                )
            ]
    agreed: _Agreed = broadcast_object_list(said)[0]
    if agreed.error:
        raise ConfigError(agreed.error)
    if not agreed.decision.on:
        return Features(agreed.decision)
    folder, shape = store_folder() / agreed.key, feature_shape(prepared.files.shapes)
    writer = FeatureWriter(folder, agreed.room // args.world_size)
    normalizer = PixelNormalizer(prepared.files).to(args.device)
    base = _base(model)
    merge_size = prepared.encoder.geometry.merge_size
    cache = FeatureCache(base, normalizer, merge_size, context.precision, FeatureReader(folder, shape), writer)
    return Features(agreed.decision, FeatureReader(folder, shape), cache)


def _decide(context: TrainingContext, model: PreTrainedModel | PeftModel) -> _Agreed:
    settings, prepared = context.settings, context.prepared
    train = settings.train
    if train.feature_cache == "off":
        return _Agreed(Decision(False, "feature cache off: as set"))
    family = context.family
    reason = refusal(learns=learning_parts(model, family), sharded=context.sharded)
    if reason is not None:
        error = f"train.feature_cache: on, but {reason}" if train.feature_cache == "on" else ""
        return _Agreed(Decision(False, f"feature cache off: {reason}"), error=error)
    about = describe_tower(model, prepared.files, context.precision, context.args.device)
    first = prepared.encoder.geometry.scaled_first
    about |= {} if first is None else {"scaled_first": first, "resized_by": "torchvision"}
    key = tower_key(model, family, about)
    folder, shape = store_folder() / key, feature_shape(prepared.files.shapes)
    found = forecast(settings, context.plans, prepared.corpora, shape, FeatureReader(folder, shape))
    room = measure_room(train)
    try:
        decision = decide(train, found, room, resumed=context.start.state.get("feature_cache"))
    except ConfigError as error:
        return _Agreed(Decision(False, ""), error=str(error))
    if decision.on:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"model": settings.model.path, **about}, indent=2, default=str)
        (folder / ABOUT).write_text(text + "\n", encoding="utf-8")
    return _Agreed(decision, key, room.left)


def _base(model: Any) -> Any:
    """The model inside adapters."""
    return model if isinstance(model, PreTrainedModel) else model.get_base_model()
