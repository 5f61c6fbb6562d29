"""Fixtures shared by the tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import tiny

# Tiny models are slower on several threads, and much slower when those threads wait for a busy core.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The caches of the tests are their own."""
    before = os.environ.get("TRIPTYCH_CACHE")
    os.environ["TRIPTYCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["TRIPTYCH_CACHE"]
    else:
        os.environ["TRIPTYCH_CACHE"] = before


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen2-VL with the pixel limits of a real one."""
    return tiny.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def small_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen2-VL whose images cost 4 to 9 tokens: for training."""
    return tiny.write_model(tmp_path_factory.mktemp("small"), max_pixels=84 * 84)
