"""The samples that a run was started on: whether they are still the same, and the plan that they give.

Kept once per run, beside the checkpoints, some 50 bytes per sample: checksums of text and of the image files' sizes and
times, where each sample stands, and what planning needs. So a resumed run says which sample changed, and one from which
samples vanished goes on by its own plan.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from triptych.corpus.corpus import Corpus
from triptych.errors import ConfigError, Origin
from triptych.planning.plan import Lengths, Plan
from triptych.planning.sharing import Saved, Sharing
from triptych.run.prepare import plan_rows
from triptych.run.settings import RunSettings

FILE = "samples.npz"
SHOWN = 5
"""Samples that an error names."""


def _nothing() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Recorded:
    """The K samples of a run as it was started."""

    text: NDArray[np.uint64]
    """(K,) checksum of ids, targets and places of images"""
    images: NDArray[np.uint64]
    """(K,) checksum of the image files' sizes and times"""
    data_file: NDArray[np.int32]
    line: NDArray[np.int64]
    source: NDArray[np.int32]
    tokens: NDArray[np.int64]
    patches: NDArray[np.int64]
    costs: NDArray[np.int64]
    """(K,) estimated work; empty where it is not known"""
    files: tuple[str, ...]
    """Data files, by number"""
    share_samples: NDArray[np.int64] = field(default_factory=_nothing)
    """(K,) of a run that shares: see ``Sharing``; empty otherwise"""
    share_prefix: NDArray[np.int64] = field(default_factory=_nothing)
    share_tokens: NDArray[np.int64] = field(default_factory=_nothing)
    share_patches: NDArray[np.int64] = field(default_factory=_nothing)
    share_costs: NDArray[np.int64] = field(default_factory=_nothing)

    @property
    def sharing(self) -> Sharing | None:
        """What the samples share; None in a run that computes each alone."""
        if not len(self.share_samples):
            return None
        saved = Saved(self.share_tokens, self.share_patches, self.share_costs)
        return Sharing(self.share_samples, self.share_prefix, saved)

    @property
    def digest(self) -> str:
        """Names the content; where the files lie does not count."""
        total = xxhash.xxh3_128()
        for name in ("text", "images", "source", "tokens", "patches", "costs"):
            total.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        return total.hexdigest()

    def origin(self, sample: int) -> Origin:
        return Origin(self.files[self.data_file[sample]], int(self.line[sample]))

    def plan(self, settings: RunSettings, world_size: int) -> Plan:
        """The rows of the run, as they were planned at its start, for any number of ranks."""
        costs = self.costs if len(self.costs) else None
        lengths = Lengths(self.tokens, self.patches)
        return plan_rows(settings, lengths, self.source, costs, world_size, self.sharing)

    def write(self, output: Path) -> None:
        """Keep it in the output folder.

        Raises:
            OSError: if the disk fails.
        """
        arrays = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "files"}
        about = np.frombuffer(json.dumps({"digest": self.digest, "files": self.files}).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, about=about, **arrays)
        unfinished = output / f".{FILE}"
        with unfinished.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(output / FILE)


def record(corpus: Corpus, costs: NDArray[np.int64] | None, sharing: Sharing | None = None) -> Recorded:
    """The samples as they are now.

    Args:
        corpus: of the split to train on.
        costs: (K,) estimated work; None where it is not known.
        sharing: what the samples share; None where each is computed alone.
    """
    sums, lengths = corpus.sums(), corpus.lengths
    nothing = _nothing()
    shared = (
        ()
        if sharing is None
        else (sharing.samples, sharing.prefix, sharing.saved.tokens, sharing.saved.patches, sharing.saved.costs)
    )
    sources = corpus.sources.astype(np.int32)
    return Recorded(
        sums.text, sums.images, sums.file, sums.line, sources, lengths.tokens, lengths.patches,
        nothing if costs is None else costs, tuple(sums.files), *shared,
    )  # fmt: skip


def read(output: Path) -> Recorded | None:
    """The samples that the run in ``output`` was started on; None if the file is missing or damaged."""
    try:
        with np.load(output / FILE) as content:
            arrays = {name: content[name] for name in content.files}
            about: dict[str, Any] = json.loads(arrays.pop("about").tobytes())
            found = Recorded(**arrays, files=tuple(about["files"]))
            return found if found.digest == about["digest"] else None
    except Exception:  # whatever a damaged archive makes of itself; the caller says what it means
        return None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The samples of a run's start beside those of now."""

    place: NDArray[np.int64]
    """(K,) number that each sample of the start has now; -1 for one that vanished"""
    changed: list[tuple[int, str]]
    """Samples of the start that are not what they were, and what of them: ``text`` or ``images``"""
    added: int
    """Samples of now that the start did not have"""

    @property
    def vanished(self) -> list[int]:
        return [int(number) for number in np.flatnonzero(self.place < 0)]


def compare(old: Recorded, new: Recorded) -> Comparison:
    """Find each sample of the start among those of now, by its text."""
    known: dict[tuple[int, int], int] = {key: number for number, key in enumerate(_occurrences(old.text))}
    place = np.full(len(old.text), -1, np.int64)
    rest: dict[tuple[int, int], int] = {}
    for number, key in enumerate(_occurrences(new.text)):
        if key in known:
            place[known[key]] = number
        else:
            rest[int(new.data_file[number]), int(new.line[number])] = number
    changed: list[tuple[int, str]] = []
    for number in range(len(place)):
        now = int(place[number])
        if now >= 0 and _looks(old, number) != _looks(new, now):
            changed.append((number, "images"))
        elif now < 0 and rest.pop((int(old.data_file[number]), int(old.line[number])), None) is not None:
            changed.append((number, "text"))
    return Comparison(place, changed, len(rest))


def refuse_changed(old: Recorded, found: Comparison, checkpoint: Path, *, skip: bool) -> None:
    """Samples never change between stop and resume, and vanish or come only under ``data.on_error: skip``.

    Raises:
        ConfigError: naming the first samples that did.
    """
    told = [f"{old.origin(number)}: its {what} changed" for number, what in found.changed]
    edited = {number for number, what in found.changed if what == "text"}
    if not skip:
        told += [f"{old.origin(number)} is gone" for number in found.vanished if number not in edited]
        told += [f"{found.added:,} samples are new"] if found.added else []
    if not told:
        return
    more = f"\n  and {len(told) - SHOWN:,} more" if len(told) > SHOWN else ""
    raise ConfigError(
        f"the samples are not those that {checkpoint} was trained on:\n  " + "\n  ".join(told[:SHOWN]) + more + "\n"
        "restore them (an image file also by its time: copy with `cp -a`), or start a new run in another output folder"
    )


def surviving(plan: Plan, place: NDArray[np.int64]) -> Plan:
    """The plan of the start with the numbers of now, each row without what vanished; rows and steps stay."""
    numbers = place[plan.samples]
    kept = np.concatenate(([0], np.cumsum(numbers >= 0)))
    return Plan(numbers[numbers >= 0], kept[plan.bounds], plan.epoch_bounds)


def _looks(samples: Recorded, number: int) -> tuple[int, ...]:
    return tuple(int(column[number]) for column in (samples.images, samples.tokens, samples.patches, samples.source))


def _occurrences(text: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """Each checksum with how often it came before: samples that are alike are told apart by their order."""
    seen: dict[int, int] = {}
    keys = []
    for value in text.tolist():
        seen[value] = seen.get(value, -1) + 1
        keys.append((value, seen[value]))
    return keys
