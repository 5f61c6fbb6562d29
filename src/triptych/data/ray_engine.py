"""The cores of a Ray cluster: shards are read, tokenized and measured where Ray puts them, results come in order."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from triptych.errors import ConfigError

T = TypeVar("T")
R = TypeVar("R")


class RayEngine:
    """A Ray cluster, through Ray Data; see ``triptych.data.engine.Engine``.

    Data files and images must lie where every machine of the cluster finds them under the same name. Only this
    process touches the caches. A task whose worker is lost is run again by Ray.
    """

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        """
        Args:
            workers: tasks at a time; None for as many as the cluster has cores.
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
                ray.init(address=address, log_to_driver=False, logging_level="warning")
            except ConnectionError as error:
                raise ConfigError(f"no Ray cluster at {address}: {error}") from error
        self.workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """See ``Engine``. All items are listed before the first is worked on."""
        import ray

        rows = [{"item": pickle.dumps(item)} for item in items]
        if not rows:
            return
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _Apply, fn_constructor_args=(pickle.dumps(function),), concurrency=(1, self.workers)
        )
        for row in dataset.iter_rows():
            yield pickle.loads(row["result"])


class _Apply:
    """Holds the function in a worker of the cluster: its tokenizer is loaded once."""

    def __init__(self, function: bytes) -> None:
        self._function = pickle.loads(function)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"result": pickle.dumps(self._function(pickle.loads(row["item"])))}
