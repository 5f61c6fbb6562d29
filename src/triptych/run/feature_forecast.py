"""Whether a run keeps image features, decided before it starts from what it will show, exactly."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from triptych.corpus.corpus import Corpus
from triptych.errors import ConfigError
from triptych.family.shapes import ModelShapes
from triptych.images import identity
from triptych.images.cache_files import cache_folder
from triptych.planning.plan import Plan
from triptych.rows.feature_store import FeatureReader, FeatureShape, entry_name
from triptych.run.prepare import Split
from triptych.run.settings import RunSettings, TrainSettings
from triptych.sources import storage
from triptych.sources.storage import Stamp

WORTH = 0.1
"""Share of the images that must come from the store for it to pay: below, writing costs about what it saves."""
FREE_SHARE = 0.9
"""Of the free disk; the rest is left to others."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the features of a run cost, and how often they are used."""

    images: int = 0
    """Distinct images, counted at each size that the run shows them at."""
    uses: int = 0
    """Images that the run shows in all its rows, those of evaluation losses too."""
    size: int = 0
    """Bytes of all features."""
    missing: int = 0
    """Distinct images that the store does not hold yet."""
    missing_size: int = 0
    """Bytes"""

    @property
    def saved(self) -> float:
        """Share of the images shown that neither decode nor tower is needed for."""
        return 1 - self.missing / self.uses if self.uses else 0.0

    def __str__(self) -> str:
        text = f"{_shown(self.size)} for {self.images:,} images, each used {self.uses / self.images:.1f} times"
        held = self.images - self.missing
        return f"{text}, {held:,} of them stored already" if held else text


@dataclass(frozen=True, slots=True)
class Room:
    """What the disk allows, bytes."""

    held: int
    """Features of all runs on disk."""
    limit: int
    """What they may reach."""
    free: int
    """Of the disk."""

    @property
    def left(self) -> int:
        """What may be written."""
        return max(0, min(self.limit - self.held, int(self.free * FREE_SHARE)))


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a run keeps features, and why."""

    on: bool
    line: str
    """For people."""


def store_folder() -> Path:
    """Where the features of all runs are, a folder per tower."""
    return cache_folder() / "features"


def feature_shape(shapes: ModelShapes) -> FeatureShape:
    """The features of one token of a model."""
    return FeatureShape(1 + shapes.vision.taps, shapes.language.width)


def forecast(
    settings: RunSettings,
    plans: dict[Split, Plan],
    corpora: dict[Split, Corpus],
    shape: FeatureShape,
    reader: FeatureReader | None = None,
) -> Forecast:
    """What the run's features cost and how often they are used; takes microseconds per image.

    Args:
        settings: of the run.
        plans: its rows: those of all epochs to train on, those of one evaluation loss.
        corpora: the samples of each plan.
        shape: of the features.
        reader: of the store; None if nothing is known of it.
    """
    if reader is not None:
        reader.refresh()
    uses, size, missing, missing_size = 0, 0, 0, 0
    seen = set[bytes]()
    containers: dict[str, Stamp | None] = {}
    for split, plan in plans.items():
        corpus = corpora[split]
        passes = 1 if split == "train" else _evaluations(settings.train, plans["train"])
        for location, resized, count in corpus.shown(np.bincount(plan.samples, minlength=len(corpus)) * passes):
            uses += count
            stamp = identity.stamp(location, containers, storage.recent_stamp)
            name = entry_name(location, stamp or (0, 0), resized, settings.data.decode)
            if name in seen:
                continue
            seen.add(name)
            cost = shape.size(corpus.geometry.tokens(*resized))
            size += cost
            if reader is None or name not in reader:
                missing += 1
                missing_size += cost
    return Forecast(len(seen), uses, size, missing, missing_size)


def _evaluations(train: TrainSettings, plan: Plan) -> int:
    """Evaluation losses of a run."""
    if train.eval_every == "epoch":
        return len(plan.epoch_bounds) - 1
    if train.eval_every is None:
        return 0
    return -(-len(plan) // train.rows_per_step) // train.eval_every


def measure_room(settings: TrainSettings) -> Room:
    """What the disk allows now."""
    folder = store_folder()
    held = 0
    for file in folder.glob("*/*"):
        with suppress(FileNotFoundError):  # someone empties the store
            held += file.stat().st_size
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    return Room(held, int(settings.feature_cache_gb * 1e9), shutil.disk_usage(existing).free)


def refusal(*, learns: Iterable[str], sharded: bool) -> str | None:
    """Why a run cannot keep features at all; None if it can.

    Args:
        learns: the parts of the model that have something to learn.
        sharded: whether ranks hold shards of each other's weights.
    """
    parts = [part for part in ("vision", "merger") if part in learns]
    if parts:
        named = " and ".join({"vision": "the vision tower", "merger": "the merger"}[part] for part in parts)
        return f"{named} learn{'s' if len(parts) == 1 else ''}; freeze tower and merger to use it"
    if sharded:
        return "under FSDP or DeepSpeed a rank cannot run the tower on its own"
    return None


def decide(settings: TrainSettings, found: Forecast, room: Room, *, resumed: bool | None = None) -> Decision:
    """Whether the run keeps features, if it can.

    Args:
        settings: ask for it or leave it open.
        found: what it would cost.
        room: what the disk allows.
        resumed: what the run that is resumed did; a run stays as it began unless the settings say otherwise.

    Raises:
        ConfigError: if it is asked for and there is no room.
    """
    if not found.images:
        return Decision(False, "feature cache off: the run shows no image")
    reason = _why_not(found, room)
    if settings.feature_cache == "on":
        if reason and not resumed:
            raise ConfigError(f"train.feature_cache: on, but {reason}")
        return Decision(True, f"feature cache: {found}")
    if resumed is not None:
        return Decision(resumed, f"feature cache: {found}" if resumed else "feature cache off: as before the stop")
    if found.saved < WORTH:
        every = "once" if found.uses == found.images else f"{found.uses / found.images:.2f} times"
        return Decision(False, f"feature cache off: every image is used {every}")
    if reason:
        return Decision(False, f"feature cache off: {reason}")
    return Decision(True, f"feature cache: {found}")


def _why_not(found: Forecast, room: Room) -> str | None:
    features = f"the features of {found.missing:,} images would take {_shown(found.missing_size)}"
    if room.held + found.missing_size > room.limit:
        held = f" beside {_shown(room.held)} already there" if room.held else ""
        return (
            f"{features}{held}, over train.feature_cache_gb {room.limit / 1e9:g}; raise it, or delete folders in "
            f"{store_folder()}"
        )
    if found.missing_size > room.free * FREE_SHARE:
        return (
            f"{features}, and {store_folder()} has {_shown(room.free)} free; make room, or choose another disk with "
            "TRIPTYCH_CACHE"
        )
    return None


def _shown(size: int) -> str:
    unit, scale = next(((unit, scale) for unit, scale in (("GB", 1e9), ("MB", 1e6)) if size >= scale), ("kB", 1e3))
    return f"{size / scale:,.1f} {unit}"
