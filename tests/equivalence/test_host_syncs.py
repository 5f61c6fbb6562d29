"""A step asks the device for nothing: on a GPU, every value that Python reads would make it wait."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForImageTextToText

import tiny
import triptych
from equivalence import varlen
from equivalence.test_sharing import records
from triptych.forward.attention import IMPLEMENTATIONS, Attention
from triptych.forward.batch import Batch, build_batch
from triptych.forward.isolation import choose_isolation
from triptych.forward.row_forward import RowForward
from triptych.model.loading import PixelNormalizer
from triptych.rows.sharing import load_or_find
from triptych.run.prepare import Prepared, prepare
from triptych.run.run_file import load
from triptych.terminal import Terminal
from triptych.training.watch.meters import SourceLosses

OURS = str(Path(triptych.__file__).parent)
READS = frozenset(
    {
        "item", "tolist", "numpy", "cpu", "nonzero", "masked_select", "unique", "argwhere",
        "__bool__", "__int__", "__float__", "__index__", "__array__",
    }
)  # fmt: skip
"""What Python waits for on a GPU; choosing by a mask is one more."""


class Reads(TorchFunctionMode):
    """Lists what code of ours reads from tensors; what transformers reads is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        by_mask = name == "__getitem__" and isinstance(args[1], torch.Tensor) and args[1].dtype is torch.bool
        if name in READS or by_mask:
            frame = sys._getframe(1)
            while "/torch/" in frame.f_code.co_filename:
                frame = frame.f_back
            if frame.f_code.co_filename.startswith(OURS):
                self.found.append(f"{name} in {Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("syncs")
    model = tiny.write_model(folder / "model", family="qwen3_vl", max_pixels=96 * 96)
    (folder / "train.json").write_text(json.dumps(records(folder)))
    return prepare(load(tiny.write_run(folder, model, folder / "train.json")), ("train",), Terminal())


def batches(prepared: Prepared) -> dict[str, Batch]:
    corpus, filler = prepared.corpora["train"], prepared.encoder.template.filler()
    order = load_or_find(corpus).samples.tolist()
    return {share: build_batch(corpus, order, filler=filler, share=share) for share in ("nothing", "images", "starts")}


@pytest.mark.parametrize("name", ["sample_sdpa", "varlen"])
def test_no_value_of_a_row_is_read_in_a_step(prepared: Prepared, name: str) -> None:
    attention = {"sample_sdpa": Attention("sample_sdpa", *IMPLEMENTATIONS["sample_sdpa"]), "varlen": varlen.reference()}
    model = AutoModelForImageTextToText.from_pretrained(prepared.files.folder)
    attention[name].install(model)
    cpu = torch.device("cpu")
    forward = RowForward(PixelNormalizer(prepared.files), choose_isolation(prepared.files.family, cpu), attention[name])
    sources = np.arange(len(prepared.corpora["train"])) % 2
    losses = SourceLosses(["one", "two"], sources, cpu)
    for share, batch in batches(prepared).items():
        with Reads() as reads:
            moved = batch.to(cpu)
            loss, each = forward.losses(model, moved)
            loss.backward()
            losses.add(moved, each, 1)
        assert reads.found == [], f"{share}: {reads.found}"


def test_a_read_is_seen(prepared: Prepared) -> None:
    """The test above must be able to fail: the look before training reads one value. Unpacking a row reads none."""
    batch = batches(prepared)["starts"]
    with Reads() as reads:
        assert len(list(batch.unpack())) == len(batch.samples)
    assert reads.found == []
    with Reads() as reads:
        RowForward(PixelNormalizer(prepared.files)).leakage(
            AutoModelForImageTextToText.from_pretrained(prepared.files.folder), 100, torch.device("cpu")
        )
    assert len(reads.found) == 1
    assert reads.found[0].startswith("__float__ in row_forward.py:")
