"""Measure the images of an index: each distinct file once, and never again while it stays as it is."""

from __future__ import annotations

import hashlib
import os
import shlex
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from triptych.corpus.execution.executor import Engine
from triptych.corpus.execution.progress import Progress
from triptych.corpus.index import Index
from triptych.errors import Code, Problem
from triptych.images import identity, measure, near_names
from triptych.images.measure import ImageError
from triptych.images.size_cache import Header, HeaderCache
from triptych.sources import members, storage
from triptych.sources.access import guarded
from triptych.sources.storage import Stamp

IMAGES_PER_TASK = 64
MOST_HINTS = 5
"""Folders with missing images about which a hint is given."""
REMOTE_AT_ONCE = 32
"""Requests in flight per worker: a remote header is a wait, not work."""
STORE_SECONDS = 1.0
"""What was measured is stored this often; a kill loses no more."""

Outcome = tuple[int, int, int, Code | None, str]
"""(height, width, traits, code, message) of one image; the sizes are 0 where there is a code."""


@dataclass(slots=True)
class Sizes:
    """What is known of the I images of an index."""

    height: NDArray[np.int32]
    """(I,) px, upright; 0 for an image that cannot be used"""
    width: NDArray[np.int32]
    traits: NDArray[np.uint8]
    """(I,) what not every program treats alike"""
    errors: dict[int, ImageError] = field(default_factory=dict)
    """By the number of the image."""

    @property
    def bad(self) -> NDArray[np.bool_]:
        """(I,) whether an image cannot be used"""
        return np.equal(self.height, 0)

    @property
    def digest(self) -> str:
        """Names the content."""
        digest = hashlib.sha256(self.height.tobytes() + self.width.tobytes() + self.traits.tobytes())
        for number in sorted(self.errors):
            digest.update(f"{number} {self.errors[number].code} {self.errors[number].message}".encode())
        return digest.hexdigest()[:20]

    def table(self) -> pa.Table:
        """The sizes as columns."""
        return pa.table({"height": self.height, "width": self.width, "traits": self.traits})


@dataclass(frozen=True, slots=True)
class Measurer:
    """Measures some images; travels to other processes."""

    deep: bool

    def __call__(self, locations: Sequence[str]) -> list[Outcome]:
        """What became of each image."""
        if not any(map(identity.is_remote, locations)):
            return [self._one(location) for location in locations]
        with ThreadPoolExecutor(REMOTE_AT_ONCE) as threads:
            return list(threads.map(self._one, locations))

    def _one(self, location: str) -> Outcome:
        from triptych.images import pixels

        try:
            measured = measure.measure(location)
            if self.deep:
                pixels.load_rgb(location)
        except ImageError as error:
            return 0, 0, 0, error.code, error.message
        return measured.height, measured.width, int(measured.traits), None, ""


def measure_images(
    index: Index, cache: HeaderCache, engine: Engine, progress: Progress, *, deep: bool = False
) -> Sizes:
    """The sizes of all images of an index. Local files are looked at to see whether they changed; remote ones that
    were measured once are taken as unchanged.

    Args:
        index: its table of images says where they are.
        cache: what was measured before, by any run; what is measured now is added.
        engine: where the work is done.
        progress: who is told.
        deep: decode every image that was not decoded before.
    """
    return _Measuring(index, cache, progress, deep).run(engine)


class _Measuring:
    """Looks images up, hands those that are not known to the engine, and remembers what comes back."""

    def __init__(self, index: Index, cache: HeaderCache, progress: Progress, deep: bool) -> None:
        self._index = index
        self._cache = cache
        self._progress = progress
        self._deep = deep
        count = index.image_count
        self._sizes = Sizes(np.zeros(count, np.int32), np.zeros(count, np.int32), np.zeros(count, np.uint8))
        self._tasks: deque[tuple[list[int], list[str], list[Stamp | None]]] = deque()
        self._waiting: list[tuple[str, Header]] = []
        self._in_flight: dict[str, list[int]] = {}
        self._stored = time.monotonic()

    def run(self, engine: Engine) -> Sizes:
        self._progress.phase("decoding" if self._deep else "measuring", self._index.image_count, "images")
        try:
            for outcomes in engine.map(Measurer(self._deep), self._unknown()):
                numbers, locations, stamps = self._tasks.popleft()
                for number, location, stamp, outcome in zip(numbers, locations, stamps, outcomes, strict=True):
                    key = identity.key(location)
                    if stamp is not None and _lasts(location, outcome[3]):
                        self._waiting.append((key, Header(stamp, *outcome, decoded=self._deep)))
                    for asked in [number, *self._in_flight.pop(key)]:
                        self._take(asked, outcome)
                self._progress.advance(len(numbers))
                if time.monotonic() - self._stored > STORE_SECONDS:
                    self._store()
        finally:
            self._store()
        return self._sizes

    def _unknown(self) -> Iterator[list[str]]:
        """Locations to measure, some at a time; those that are known are taken on the way."""
        containers: dict[str, Stamp | None] = {}
        numbers: list[int] = []
        locations: list[str] = []
        stamps: list[Stamp | None] = []
        for start, found in self._index.location_batches():
            self._store()  # another data file may name the same images
            keys = [identity.key(location) for location in found]
            known = self._cache.lookup(keys)
            for number, (location, key) in enumerate(zip(found, keys, strict=True), start):
                stamp = identity.stamp(location, containers)
                header = known.get(key)
                if header is not None and header.stamp == stamp and (header.decoded or not self._deep or header.code):
                    self._take(number, (header.height, header.width, header.traits, header.code, header.message))
                    self._progress.advance(1)
                    continue
                if key in self._in_flight:
                    self._in_flight[key].append(number)
                    self._progress.advance(1)
                    continue
                self._in_flight[key] = []
                numbers.append(number)
                locations.append(location)
                stamps.append(stamp)
                if len(numbers) == IMAGES_PER_TASK:
                    self._tasks.append((numbers, locations, stamps))
                    yield locations
                    numbers, locations, stamps = [], [], []
        if numbers:
            self._tasks.append((numbers, locations, stamps))
            yield locations

    def _take(self, number: int, outcome: Outcome) -> None:
        height, width, traits, code, message = outcome
        self._sizes.height[number], self._sizes.width[number] = height, width
        self._sizes.traits[number] = traits
        if code is not None:
            self._sizes.errors[number] = ImageError(code, message)
            self._progress.found(Problem(code, self._index.origin(self._index.first_user(number)), message))

    def _store(self) -> None:
        self._cache.store(self._waiting)
        self._waiting = []
        self._stored = time.monotonic()


def _lasts(location: str, code: Code | None) -> bool:
    """Whether an outcome holds as long as the file, and for every source: a network that failed today may work
    tomorrow, and another source may not be confined.
    """
    if code == "image-outside":
        return False
    return not location.startswith(identity.REFUSED) and (code is None or not identity.is_remote(location))


def missing_hints(index: Index, sizes: Sizes) -> list[str]:
    """Where the images that are missing lie, if their names are found in a folder near by; a line for each folder
    that they were looked for in.
    """
    missing: dict[str, list[tuple[str, int]]] = {}  # folder -> (name, number)
    for number, error in sizes.errors.items():
        if error.code != "image-missing":
            continue
        name, location = index.image(number)
        location = guarded.path_of(location)
        if location.startswith((identity.REFUSED, members.PREFIX)) or storage.is_remote(location):
            continue
        missing.setdefault(location.removesuffix(name.removeprefix("./")), []).append((name, number))
    hints: list[str] = []
    for folder, found in list(missing.items())[:MOST_HINTS]:
        data_file = index.files[index.file_of(index.first_user(found[0][1]))].path
        spread = found[:: max(1, len(found) // near_names.TRIED)]  # the first ones may all be of one kind
        # Where a file of nearly that name lies in its place, the problem names it, and the folder is right.
        spread = [
            (name, number)
            for name, number in spread
            if near_names.near(guarded.path_of(index.image(number)[1])) is None
        ]
        known = [os.getcwd(), storage.parent(storage.absolute(data_file)), folder]
        place = near_names.place_of(
            [name for name, _ in spread], [path for path in known if not storage.is_remote(path)]
        )
        if place is not None:
            hints.append(_hint(place, folder, len(found)))
    return hints


def _hint(place: near_names.Place, folder: str, count: int) -> str:
    there, here = _shown(place.folder), _shown(folder) if folder.endswith("/") else "where the data says"
    images = f"{count:,} image{'s' * (count != 1)} missing"
    name = place.example
    if not place.removed and not name.startswith("/"):
        return (
            f"{images} under {here}; the same names exist in {there}: try --media-dir {shlex.quote(there)} "
            "(in a run file: media_dir of the source)"
        )
    parts = [part for part in name.replace("\\", "/").split("/") if part]
    extra = "".join(f"{part}/" for part in parts[: place.removed])
    extra = f"/{extra}" if name.startswith("/") else extra
    return (
        f"{images} under {here}; names such as {name!r} exist in {there} without {extra!r} in front: remove that from "
        f"the names, and use --media-dir {shlex.quote(there)} (in a run file: media_dir of the source)"
    )


def _shown(folder: str) -> str:
    """A folder as seen from the working folder, where it lies below it."""
    relative = os.path.relpath(folder)
    return os.path.abspath(folder) if relative.startswith("..") else relative
