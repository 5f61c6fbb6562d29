"""See from outside whether a process that builds rows goes on, and which image it has in hand.

A board of anonymous memory has one slot per process. The process counts in it whatever it begins and ends; whoever
waits for a row looks whether the count moves. A process that was stopped, or reads a file that never answers, cannot
say so itself:

    slot    steps     row + 1   name of the image that was begun first and is not done
            18,204    7         /data/images/a.jpg
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from triptych.images import identity
from triptych.images.headers.first_bytes import INLINE
from triptych.images.measure import ImageError
from triptych.sources import members
from triptych.sources.access import guarded

SLOT = 4096
"""Bytes of one process."""
LONGEST = 3900
"""Bytes of a name; of a longer one the hash is kept."""
START_SECONDS = 60.0
"""Given to a process that has just been started, at least; on a busy machine that takes long."""
_HEAD = struct.Struct("<QQQ")  # steps, row + 1 or 0 for none, bytes of the name


@dataclass(frozen=True, slots=True)
class Doing:
    """What a process was seen to do."""

    steps: int
    row: int | None
    """That it builds; None if it waits for one."""
    image: str
    """The label of the image in hand; empty if it has none."""


def label(location: str) -> str:
    """How the board names the image at ``location``; the same in every process."""
    key = identity.key(location)
    return key if len(key.encode()) <= LONGEST else hashlib.blake2b(key.encode(), digest_size=16).hexdigest()


def shown(image: str) -> str:
    """How a message names an image by its label."""
    if image.startswith(INLINE):
        return "a data URI"
    image = guarded.path_of(image)
    return repr(members.shown(image) if image.startswith(members.PREFIX) else image)


class Board:
    """The slots of all processes, as the one that started them sees them."""

    def __init__(self, processes: int) -> None:
        self.file = os.memfd_create("triptych-board")
        os.ftruncate(self.file, processes * SLOT)
        self._memory = mmap.mmap(self.file, processes * SLOT)

    def doing(self, process: int) -> Doing:
        """What the slot of a process says now."""
        steps, row, size = _HEAD.unpack_from(self._memory, process * SLOT)
        start = process * SLOT + _HEAD.size
        name = self._memory[start : start + min(size, LONGEST)]
        return Doing(steps, row - 1 if row else None, name.decode(errors="replace"))

    def close(self) -> None:
        """Let the memory go."""
        self._memory.close()
        os.close(self.file)


class Slot:
    """The slot of this process; several threads may have an image in hand."""

    def __init__(self, file: int, process: int, hung: frozenset[str], patience: float) -> None:
        self._memory = mmap.mmap(file, SLOT, offset=process * SLOT)
        self._hung = hung
        self._patience = patience
        self._lock = threading.Lock()
        self._steps = 0
        self._row = 0
        self._in_hand: dict[int, str] = {}  # number of the reading -> label, the first begun first
        os.close(file)
        self._write()

    def begin_row(self, row: int) -> None:
        """A row is taken."""
        with self._lock:
            self._row = row + 1
            self._write()

    def end_row(self) -> None:
        """The row is handed over."""
        with self._lock:
            self._row = 0
            self._write()

    @contextmanager
    def reading(self, location: str) -> Iterator[None]:
        """An image is in hand.

        Raises:
            ImageError: ``image-unreadable`` if it has kept a process from going on before, more than once.
        """
        name = label(location)
        if name in self._hung:
            said = (
                f"{shown(name)} did not finish within {self._patience:g} s, twice: its disk or server does not answer"
            )
            raise ImageError("image-unreadable", f"{said}; copy the file to a local disk, or raise data.stall_seconds")
        with self._lock:
            number = self._steps
            self._in_hand[number] = name
            self._write()
        try:
            yield
        finally:
            with self._lock:
                del self._in_hand[number]
                self._write()

    def _write(self) -> None:
        self._steps += 1
        name = next(iter(self._in_hand.values()), "").encode()
        _HEAD.pack_into(self._memory, 0, self._steps, self._row, len(name))
        self._memory[_HEAD.size : _HEAD.size + len(name)] = name


class Patience:
    """Finds the processes that do not go on, by looking again and again.

    Only time in which this process itself runs and waits counts: after the whole run was stopped for an hour, nobody
    is late.
    """

    def __init__(self, board: Board, processes: int, seconds: float) -> None:
        self._board = board
        self._seconds = seconds
        self._seen = [board.doing(process) for process in range(processes)]
        self._quiet = [0.0] * processes

    def look(self, waited: float) -> list[int]:
        """The processes that have stood still for too long, now that ``waited`` more seconds have passed.

        Those that build a row; or all of them, if none does: they were stopped before they took it.
        """
        for process, seen in enumerate(self._seen):
            now = self._board.doing(process)
            self._quiet[process] = 0.0 if now != seen else self._quiet[process] + waited
            self._seen[process] = now
        late = [process for process, quiet in enumerate(self._quiet) if quiet >= self._allowed(process)]
        building = [process for process, seen in enumerate(self._seen) if seen.row is not None]
        if not building:
            return late if len(late) == len(self._seen) else []
        return [process for process in late if process in building]

    def _allowed(self, process: int) -> float:
        return self._seconds if self._seen[process].steps else max(self._seconds, START_SECONDS)

    def doing(self, process: int) -> Doing:
        """What a process was last seen to do."""
        return self._seen[process]
