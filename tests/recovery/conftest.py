"""A server of commands, and a run that takes a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny
from cli_server import Server, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("commands")) as found:
        yield found


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen samples; not to be changed."""
    return tiny.write_dataset(tmp_path_factory.mktemp("data"), 16)


@pytest.fixture
def write_run(small_model_dir: Path, dataset: Path, tmp_path: Path) -> Callable[..., Path]:
    """A run file over ``dataset`` of eight steps, saved after every third; groups of settings may be given."""

    def write(data: Path = dataset, /, **settings: Any) -> Path:
        merged = {"batch": {"samples": 2}, **settings}
        merged["train"] = {"save_every": 3, "keep_checkpoints": None, **settings.get("train", {})}
        return tiny.write_run(tmp_path, small_model_dir, data, **merged)

    return write
