"""Rows of a plan in order, decoded ahead by processes of their own, as far as a budget of bytes allows.

The plan says what each row takes before any of it is read, so memory is what bounds the look-ahead, and not a number
of rows: long rows are few, short ones many. Any idle process takes the next row; rows come out in order.
"""

from __future__ import annotations

import os
import pickle
import select
import socket
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from triptych.corpus.executor import usable_cores
from triptych.errors import ConfigError, TriptychError
from triptych.planning.plan import Plan
from triptych.rows.builder import Row, RowBuilder
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
PATIENCE = 0.5
"""Seconds without news after which the processes are looked at."""


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

    def begin(self, row: int) -> None:
        """Have ``row`` and the rows that follow it built ahead, and nothing else."""
        self.close()
        if self.loading.workers and row < len(self.plan):
            self._next = row
            self._workers = Workers(self.builder, self.loading)
            self._fill(self._workers)

    def take(self, row: int) -> Row:
        """A row; quickly, if it is the one that follows on the last.

        Raises:
            TriptychError: if a process died.
            Exception: whatever building the row raised.
        """
        if not self.loading.workers:
            return self.builder.build(self._samples(row))
        if not self._ahead or self._ahead[0][0] != row:
            self.begin(row)
        assert self._workers is not None
        try:
            result = self._receive(row, self._workers)
            self._fill(self._workers)
        except BaseException:
            self.close()
            raise
        if not self._ahead:
            self.close()  # it was the last row: processes that wait for nothing take memory
        return result

    def close(self) -> None:
        """End the processes and forget what they did; the next row that is asked for starts them anew."""
        if self._workers is not None:
            self._workers.close()
        self._workers = None
        self._ahead.clear()
        self._ready.clear()
        self.bytes_ahead = 0

    def _receive(self, row: int, workers: Workers) -> Row:
        while row not in self._ready:
            number, found = workers.receive()
            self._ready[number] = found
        result = self._ready.pop(row)
        self.bytes_ahead -= self._ahead.popleft()[1]
        if isinstance(result, Failure):
            raise result.error from WorkerTrace(result.trace)
        return result

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


class WorkerTrace(Exception):
    """Where in its process a task failed."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class Workers:
    """Processes that build rows. One socket serves them all: whoever is idle takes the next task off it."""

    def __init__(self, builder: RowBuilder, loading: Loading) -> None:
        if not CAN_SHARE:
            raise ConfigError("data.workers: processes that decode images need Linux; set data.workers: 0")
        # Packets: a message comes whole, to one receiver. To fork this process, which has threads (torch's,
        # tokenizers', Arrow's), could hang; fresh interpreters without torch start in a quarter of a second.
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        job = pickle.dumps((builder, loading.threads))
        with theirs:
            self.processes = [_start(theirs.fileno(), job) for _ in range(loading.workers)]
        # Also at the end of the interpreter.
        self.close = weakref.finalize(self, _stop, self._line, self.processes)

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
        """
        while True:
            self._look()
            if select.select([self._line], [], [], PATIENCE)[0]:
                break
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

    def _died(self) -> TriptychError:
        codes = sorted({process.returncode for process in self.processes if process.poll() is not None})
        self.close()
        return TriptychError(
            f"a process that decodes images died (exit status {', '.join(map(str, codes)) or 'unknown'}), most likely "
            "for want of memory; lower data.workers or data.prefetch_mb"
        )


def _start(line: int, job: bytes) -> subprocess.Popen[bytes]:
    code = f"import sys; sys.path[:] = {sys.path!r}; from triptych.rows.worker import main; main({line})"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, pass_fds=[line], env={**os.environ, **ENVIRONMENT}
    )
    assert process.stdin is not None
    with process.stdin as stdin:
        stdin.write(job)
    return process


def _stop(line: socket.socket, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    line.close()
    for process in processes:
        process.kill()  # they hold nothing that could be left half
    for process in processes:
        process.wait()
