"""The benchmark for GPUs: its shapes are those of the released models, and it runs where there is no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.mark.parametrize(("size", "parameters"), [("2B", 2_208_985_600), ("7B", 8_291_375_616)])
def test_a_model_has_as_many_parameters_as_the_released_one(
    monkeypatch: pytest.MonkeyPatch, size: str, parameters: int
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import gpu

    model = gpu.make_model(gpu.Case("meta", size, 8192, "full", "sdpa", False))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    row = gpu.make_row(gpu.Case("meta", size, 8192, "full", "sdpa", False), gpu.GEOMETRY)
    assert row.input_ids.shape == (1, 8192)
    assert len(row.image_grid_thw) == 8


@pytest.mark.slow
def test_every_case_is_a_line_and_one_that_cannot_run_says_why(tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    command = [sys.executable, str(SCRIPT), "--tiny", "--device", "cpu", "--methods", "lora", "--out", str(out)]
    subprocess.run([*command, "--attention", "sample_sdpa", "varlen"], check=True, env=os.environ)
    first, checkpointed, *refused = [json.loads(line) for line in out.read_text().splitlines()]
    for case in (first, checkpointed):
        assert case["tokens"] == 512
        assert case["tokens_per_second"] > 0
        assert case["packed_loss"] < 1e-3
        assert case["packed_gradient"] < 0.02
    assert len(refused) == 2
    assert all("needs a CUDA device" in case["failed"] for case in refused)
