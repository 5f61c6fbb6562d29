"""Run a function over many items on all cores, in order; small work never leaves this process."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing.connection import wait
from typing import Any, Protocol, TypeVar

from triptych.errors import TriptychError

T = TypeVar("T")
R = TypeVar("R")

PATIENCE = 0.8
"""Seconds of work in this process before others are started: about what starting them takes."""
COLLECT_AFTER = 200_000
"""New objects in a worker before Python looks for cycles. Records make many objects and hardly a cycle; at its usual
pace the search takes a fifth of the time."""
THREADS = 2
"""Of this process, before others are started."""
AHEAD = 4
"""Items in flight per worker."""


def usable_cores() -> int:
    """Cores that this process may use; where the system does not tell (macOS, Windows), all of the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Engine(Protocol):
    """Where measuring and tokenizing happen. What they give does not depend on it."""

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """``function(item)`` of every item, in the order of the items.

        The function and the items must pickle. Errors of the function are raised here.
        """


class LocalEngine:
    """The cores of this machine."""

    def __init__(self, workers: int | None = None, *, patience: float = PATIENCE) -> None:
        """
        Args:
            workers: processes; None for as many as this process may use cores.
            patience: seconds of work in this process before workers are started.
        """
        self.workers = workers if workers is not None else usable_cores()
        self.patience = patience

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """See ``Engine``.

        Raises:
            TriptychError: if a worker dies.
        """
        if self.workers == 1:
            yield from map(function, items)
            return
        rest = iter(items)
        yield from self._here(function, rest)
        yield from self._spread(function, rest)

    def _here(self, function: Callable[[T], R], items: Iterator[T]) -> Iterator[R]:
        """Work in this process while patience lasts: one thread parses while another waits for the tokenizer, which
        lets go of the interpreter and uses the other cores.
        """
        began = time.monotonic()
        pending: deque[Future[R]] = deque()
        with ThreadPoolExecutor(THREADS) as pool:
            for item in items:  # the first one in any case: it may be the only one
                pending.append(pool.submit(function, item))
                if len(pending) > THREADS:
                    yield pending.popleft().result()
                if time.monotonic() - began >= self.patience:
                    break
            while pending:
                yield pending.popleft().result()

    def _spread(self, function: Callable[[T], R], items: Iterator[T]) -> Iterator[R]:
        first = list(islice(items, 1))
        if not first:
            return
        # A fresh interpreter each: to fork a process that has threads (tokenizers', Arrow's) can hang.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(self.workers, context, _prepare_worker, (function,))
        pending: deque[Future[R]] = deque()
        try:
            for item in chain(first, items):
                pending.append(pool.submit(_call, item))
                if len(pending) >= self.workers * AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise TriptychError(
                "a worker process died, most likely because memory ran out; try fewer with --workers"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_worker: Callable[[Any], Any] | None = None  # of a worker process: what it was started for


def _prepare_worker(function: Callable[[Any], Any]) -> None:
    global _worker
    _worker = function
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each worker has one core
    gc.set_threshold(COLLECT_AFTER)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers the keyboard
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _call(item: Any) -> Any:
    assert _worker is not None
    return _worker(item)
