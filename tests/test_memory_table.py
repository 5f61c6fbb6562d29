"""docs/memory.md holds what the estimator says: for one model always, for all of them in a slow test."""

from __future__ import annotations

import runpy
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def shown(*names: str) -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "write_memory.py"))
    samples = [tool["Sample"](images, side) for images, side in tool["COLUMNS"]]
    texts = [page.read_text(encoding="utf-8") for page in tool["PAGES"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names or tool["MODELS"]:
            for again in (True, False):
                for line in tool["lines_of"](name, again, samples):
                    assert all(line in text for text in texts), f"run tools/write_memory.py: {line}"


def test_the_table_holds_what_the_estimator_says_of_one_model() -> None:
    shown("qwen3_vl-2B")


@pytest.mark.slow
def test_the_table_holds_what_the_estimator_says_of_every_model() -> None:
    shown()
