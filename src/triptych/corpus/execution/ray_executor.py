"""The cores of a Ray cluster: shards are read, tokenized and measured where Ray puts them, results come in order."""

from __future__ import annotations

import logging
import os
import pickle
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from triptych.corpus.execution.executor import AHEAD
from triptych.errors import ConfigError, TriptychError

T = TypeVar("T")
R = TypeVar("R")

RETRIES = 3
"""Times that Ray runs a task again after its worker or machine was lost."""
TASK_SECONDS = 0.5
"""Short items share a task until it takes about this long: handing one to the cluster costs a millisecond."""
MOST_ITEMS = 64
"""Items of one task."""


class RayEngine:
    """A Ray cluster; see ``triptych.corpus.execution.executor.Engine``.

    Data files and images must lie where every machine of the cluster finds them under the same name, and Triptych must
    be installed there. Only this process touches the caches. A task whose worker is lost is run again by Ray.

    Plain Ray tasks, not a Ray dataset: that wants all items before the first is worked on and keeps something of each
    until the last is done, while here a bounded number is on the way whatever the size of the data.
    """

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        """
        Args:
            workers: tasks at a time; None for all cores that the cluster has now. A cluster that grows on demand
                grows to this number.
            address: the cluster to join; None for the one that Ray finds, or a new one on this machine.

        Raises:
            ConfigError: if Ray is not installed or the cluster cannot be reached.
        """
        try:
            import ray
        except ImportError as error:
            raise ConfigError(f"{error}; pip install 'triptych[ray]'") from error
        if not ray.is_initialized():
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConfigError(f"cannot join the Ray cluster at {address or 'its usual place'}: {error}") from error
        # Ray itself runs no more than there are cores; one waiting for each keeps them busy.
        self._at_once = workers or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """See ``Engine``. Items are taken as they are needed; finished results wait for those in front of them.

        Raises:
            TriptychError: what the function raised, or if the worker of one task dies again and again.
        """
        import ray

        run = ray.remote(num_cpus=1, max_retries=RETRIES)(_run)
        name = uuid.uuid4().hex
        # An array is not copied when a task takes it, and a worker unpickles it once: a tokenizer takes tenths.
        shipped = ray.put(np.frombuffer(pickle.dumps(function), np.uint8))
        rest = iter(items)
        count = 1
        pending: deque[Any] = deque()
        unfinished: dict[Any, None] = {}
        try:
            while True:
                while len(unfinished) < self._at_once and len(pending) < self._at_once * AHEAD:
                    batch = list(islice(rest, count))
                    if not batch:
                        break
                    pending.append(run.remote(name, shipped, pickle.dumps(batch)))
                    unfinished[pending[-1]] = None
                if not pending:
                    return
                if pending[0] in unfinished:
                    (finished,), _ = ray.wait([*unfinished], num_returns=1, fetch_local=False)
                    del unfinished[finished]
                    continue
                seconds, results = _result(pending.popleft())
                count = _items_per_task(seconds / len(results))
                yield from results
        finally:
            for task in unfinished:
                ray.cancel(task)


def _items_per_task(seconds: float) -> int:
    return max(1, min(MOST_ITEMS, int(TASK_SECONDS / max(seconds, 1e-6))))


def _result(task: Any) -> tuple[float, list[Any]]:
    import ray

    try:
        seconds, content = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, TriptychError):
            raise error.cause from None  # the user's to fix: where in the cluster it showed is no help
        raise
    except ray.exceptions.RayError as error:
        raise TriptychError(
            f"a worker of the Ray cluster was lost {RETRIES + 1} times over the same piece of data, most likely for "
            f"want of memory; give the cluster fewer tasks at a time with --workers ({type(error).__name__})"
        ) from error
    return seconds, pickle.loads(content)


_function: tuple[str, Callable[[Any], Any]] | None = None  # of a worker process: what it is called for


def _run(name: str, shipped: Any, items: bytes) -> tuple[float, bytes]:
    """(seconds, pickled results) of some items; runs in a worker of the cluster."""
    global _function
    if _function is None or _function[0] != name:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each task has one core
        _function = name, pickle.loads(shipped)
    began = time.monotonic()
    found: Sequence[Any] = [_function[1](item) for item in pickle.loads(items)]
    return time.monotonic() - began, pickle.dumps(found)
