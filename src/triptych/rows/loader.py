"""Rows of a plan in order, decoded ahead by processes of their own, as far as a budget of bytes allows.

The plan says what each row takes before any of it is read, so memory is what bounds the look-ahead, and not a number
of rows: long rows are few, short ones many. Any idle process takes the next row; rows come out in order.
"""

from __future__ import annotations

import logging
import os
import pickle
import select
import socket
import subprocess
import sys
import time
import weakref
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from triptych.corpus.execution.executor import usable_cores
from triptych.errors import ConfigError, TriptychError, printable
from triptych.planning.plan import Plan
from triptych.rows.builder import Row, RowBuilder
from triptych.rows.watch import Board, Patience, shown
from triptych.rows.worker import Failure, receive, send

CAN_SHARE = hasattr(os, "memfd_create") and hasattr(socket, "SOCK_SEQPACKET") and hasattr(socket, "send_fds")
"""Whether this system has what rows are handed over with: anonymous files, and packets that carry them."""
ROWS_AHEAD = 64
"""At most, however small they are: each holds an open file."""
THREADS = 8
"""At most, of one process: a row seldom holds enough images for more."""
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    # Keep what an image took for the next one (glibc): else each costs a page fault for every four kilobytes.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20),
    "MALLOC_TOP_PAD_": str(16 * 2**20),
}
"""Of the processes."""
LOOK_EVERY = 0.5
"""Seconds without news after which the processes are looked at."""
END_SECONDS = 2.0
"""Given to a killed process: one that waits for a disk that does not answer goes only when the disk does."""
STALLS = 3
"""Times that a row may stall without an image in hand."""

logger = logging.getLogger("triptych")


@dataclass(frozen=True, slots=True)
class Loading:
    """How rows are decoded ahead."""

    workers: int = 0
    """Processes; 0 to build each row when it is asked for."""
    budget: int = 256 * 2**20
    """Bytes of rows that are being built or wait; a single row may be larger."""
    stride: int = 1
    """Rows from one that is asked for to the next: the number of ranks."""
    threads: int = 1
    """Of each process, for rows of several images."""
    stall_seconds: float = 120.0
    """Without any progress, after which a process is replaced."""


def threads_per_worker(workers: int) -> int:
    """Threads that give each core of this machine something to do, and no core two."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(THREADS, usable_cores() // max(1, workers * ranks)))


class RowLoader:
    """The rows of a plan, one by one."""

    def __init__(self, plan: Plan, builder: RowBuilder, loading: Loading) -> None:
        self.plan = plan
        self.builder = builder
        self.loading = loading
        self.bytes_ahead = 0
        """Of the rows that are being built or wait; never over the budget, unless it is a single row's."""
        self._ahead: deque[tuple[int, int]] = deque()  # row and bytes, in order
        self._next = 0
        self._ready: dict[int, Row | Failure] = {}
        self._workers: Workers | None = None
        self._stalls = Counter[tuple[int, str]]()  # row that was waited for, label of the image in hand
        self._hung: frozenset[str] = frozenset()

    def begin(self, row: int) -> None:
        """Have ``row`` and the rows that follow it built ahead, and nothing else."""
        self.close()
        if self.loading.workers and row < len(self.plan):
            self._next = row
            self._workers = self._start()
            self._fill(self._workers)

    def take(self, row: int) -> Row:
        """A row; quickly, if it is the one that follows on the last.

        Raises:
            TriptychError: if a process died, or the row stalls again and again.
            Exception: whatever building the row raised.
        """
        if not self.loading.workers:
            return self.builder.build(self._samples(row))
        if not self._ahead or self._ahead[0][0] != row:
            self.begin(row)
        assert self._workers is not None
        try:
            result = self._receive(row)
            self._fill(self._workers)
        except BaseException:
            self.close()
            raise
        if not self._ahead:
            self.close()  # it was the last row: processes that wait for nothing take memory
        return result

    def close(self) -> None:
        """End the processes and forget what they did; the next row that is asked for starts them again."""
        if self._workers is not None:
            self._workers.close()
        self._workers = None
        self._ahead.clear()
        self._ready.clear()
        self.bytes_ahead = 0

    def _start(self) -> Workers:
        return Workers(self.builder, self.loading, self._hung)

    def _receive(self, row: int) -> Row:
        while row not in self._ready:
            assert self._workers is not None
            try:
                number, found = self._workers.receive()
            except Stalled as stalled:
                self._replace(row, stalled)
            else:
                self._ready[number] = found
        result = self._ready.pop(row)
        self.bytes_ahead -= self._ahead.popleft()[1]
        if isinstance(result, Failure):
            raise result.error from WorkerTrace(result.trace)
        return result

    def _replace(self, row: int, stalled: Stalled) -> None:
        """Start new processes, and give them all that the old ones did not finish.

        An image that keeps a second process from going on is not tried again: its sample is lost, and named.
        """
        assert self._workers is not None
        self._workers.close()
        for image in stalled.images or ("",):
            self._stalls[row, image] += 1
            if image and self._stalls[row, image] > 1:
                self._hung |= {image}
        if self._stalls[row, ""] > STALLS:
            raise TriptychError(
                f"row {row} was begun {STALLS + 1} times and no process finished it within "
                f"{self.loading.stall_seconds:g} s each: a file of the cache or of the data does not answer, or this "
                "machine is overloaded; raise data.stall_seconds, or set data.workers: 0"
            )
        logger.warning("%s", printable(str(stalled)))
        self._workers = self._start()
        for number, _ in self._ahead:
            if number not in self._ready:
                self._workers.submit(number, self._samples(number))

    def _fill(self, workers: Workers) -> None:
        while self._next < len(self.plan) and len(self._ahead) < ROWS_AHEAD:
            size = self.builder.bytes_at_most(self.plan.row(self._next))
            if self._ahead and self.bytes_ahead + size > self.loading.budget:
                return
            workers.submit(self._next, self._samples(self._next))
            self._ahead.append((self._next, size))
            self.bytes_ahead += size
            self._next += self.loading.stride

    def _samples(self, row: int) -> list[int]:
        samples: list[int] = self.plan.row(row).tolist()
        return samples


class Stalled(Exception):
    """Processes that do not go on."""

    def __init__(self, images: Sequence[str], pids: Sequence[int], seconds: float) -> None:
        names = ", ".join(map(shown, images))
        what = f"with {names} in hand" if names else "with no image in hand"
        one = len(pids) == 1
        super().__init__(
            f"{'a process that decodes images has' if one else f'{len(pids)} processes that decode images have'} not "
            f"gone on for {seconds:g} s, {what} (process {', '.join(map(str, pids))}): replacing "
            f"{'it' if one else 'them'}, no sample is lost by that"
        )
        self.images = tuple(images)
        """Labels of the images that they have in hand."""


class WorkerTrace(Exception):
    """Where in its process a task failed."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class Workers:
    """Processes that build rows. One socket serves them all: whoever is idle takes the next task off it."""

    def __init__(self, builder: RowBuilder, loading: Loading, hung: frozenset[str] = frozenset()) -> None:
        if not CAN_SHARE:
            raise ConfigError("data.workers: processes that decode images need Linux; set data.workers: 0")
        # Packets: a message comes whole, to one receiver. To fork this process, which has threads (torch's,
        # tokenizers', Arrow's), could hang; fresh interpreters without torch start in a quarter of a second.
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        job = pickle.dumps((builder, loading.threads, hung, loading.stall_seconds))
        board = Board(loading.workers)
        with theirs:
            self.processes = [_start(theirs.fileno(), board.file, n, job) for n in range(loading.workers)]
        self._patience = Patience(board, loading.workers, loading.stall_seconds)
        self._seconds = loading.stall_seconds
        # Also at the end of the interpreter.
        self.close = weakref.finalize(self, _stop, self._line, board, self.processes)

    def submit(self, number: int, indices: Sequence[int]) -> None:
        """Have a row built.

        Raises:
            TriptychError: if the processes died.
        """
        try:
            send(self._line, number, indices)
        except ConnectionError as error:
            raise self._died() from error

    def receive(self) -> tuple[int, Any]:
        """The next row that is done, and its number; waits for it.

        Raises:
            TriptychError: if a process died.
            Stalled: if one does not go on.
        """
        while True:
            self._look()
            began = time.monotonic()
            if select.select([self._line], [], [], LOOK_EVERY)[0]:
                break
            # No more than was meant: this process may have been stopped itself.
            self._find_stalled(min(time.monotonic() - began, 2 * LOOK_EVERY))
        try:
            found = receive(self._line)
        except ConnectionError as error:
            raise self._died() from error
        if found is None:
            raise self._died()
        return found

    def _look(self) -> None:
        if any(process.poll() is not None for process in self.processes):
            raise self._died()

    def _find_stalled(self, waited: float) -> None:
        late = self._patience.look(waited)
        if late:
            images = dict.fromkeys(self._patience.doing(process).image for process in late)
            images.pop("", None)
            raise Stalled(list(images), [self.processes[process].pid for process in late], self._seconds)

    def _died(self) -> TriptychError:
        codes = sorted({process.returncode for process in self.processes if process.poll() is not None})
        self.close()
        return TriptychError(
            f"a process that decodes images died (exit status {', '.join(map(str, codes)) or 'unknown'}), most likely "
            "out of memory; lower data.workers or data.prefetch_mb"
        )


def _start(line: int, board: int, number: int, job: bytes) -> subprocess.Popen[bytes]:
    main = f"from triptych.rows.worker import main; main({line}, {board}, {number})"
    process = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {main}"],
        stdin=subprocess.PIPE,
        pass_fds=[line, board],
        env={**os.environ, **ENVIRONMENT},
    )
    assert process.stdin is not None
    with process.stdin as stdin:
        stdin.write(job)
    return process


def _stop(line: socket.socket, board: Board, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    line.close()
    for process in processes:
        process.kill()  # they hold nothing that could be left half
    give_up = time.monotonic() + END_SECONDS
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, give_up - time.monotonic()))
    board.close()
