"""What names an image in every cache, and what tells that it changed since."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from triptych.images import measure
from triptych.images.first_bytes import INLINE
from triptych.sources import members, storage
from triptych.sources.storage import Stamp


def key(location: str) -> str:
    """Name of an image in a cache; what is inside the data file itself goes by its hash."""
    if not location.startswith(INLINE):
        return location
    return INLINE + hashlib.blake2b(location.encode(), digest_size=16).hexdigest()


def stamp(
    location: str,
    containers: dict[str, Stamp | None],
    ask: Callable[[str], Stamp | None] = storage.stamp,
) -> Stamp | None:
    """Tells whether the file that holds an image changed; None if there is none.

    Args:
        location: as ``measure.open_bytes`` takes it.
        containers: what is known of files that hold many images; each is asked once and added.
        ask: how a container is asked.
    """
    if location.startswith((INLINE, measure.REFUSED)):
        return len(location), 0
    if location.startswith(members.PREFIX):
        container = members.container(location)
        if container not in containers:
            containers[container] = ask(container)
        return containers[container]
    if measure.is_remote(location):
        return 0, 0  # to ask for every remote file at every start would cost a request each
    return storage.stamp(location)
