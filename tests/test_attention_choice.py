"""The attention of a run: the best that works here, said with the reason; a forced one that cannot is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch

import tiny
from triptych.errors import ConfigError
from triptych.family.family import read_model_files
from triptych.family.shapes import ModelShapes, read_shapes
from triptych.forward.attention import IMPLEMENTATIONS, AttentionSupport, choose_attention, find_attention_support
from triptych.run.prepare import prepare
from triptych.run.reporter import LogReporter
from triptych.run.run_file import load
from triptych.run.settings import AttentionName
from triptych.training.train import train

EVERYTHING: frozenset[AttentionName] = frozenset({"flash_attention_3", "flash_attention_2", "varlen"})
HOPPER = AttentionSupport("cuda", (9, 0), EVERYTHING)
AMPERE = AttentionSupport("cuda", (8, 0), EVERYTHING)
CPU = AttentionSupport("cpu")


def config(**text: Any) -> ModelShapes:
    """Shapes of Qwen2-VL-2B, but for two layers only."""
    language = {"hidden_size": 1536, "num_attention_heads": 12, "num_hidden_layers": 2}
    return read_shapes({"model_type": "qwen2_vl", "text_config": {**language, **text}})


def test_every_setting_has_an_implementation() -> None:
    assert set(get_args(AttentionName)) == {"auto", *IMPLEMENTATIONS}


@pytest.mark.parametrize(
    ("support", "precision", "expected"),
    [
        (HOPPER, torch.bfloat16, "flash_attention_3"),
        (AMPERE, torch.bfloat16, "flash_attention_2"),
        (AttentionSupport("cuda", (10, 0), EVERYTHING), torch.bfloat16, "flash_attention_2"),
        (AttentionSupport("cuda", (9, 0), frozenset({"varlen"})), torch.bfloat16, "varlen"),
        (AttentionSupport("cuda", (9, 0)), torch.bfloat16, "sample_sdpa"),
        (AttentionSupport("cuda", (7, 5), EVERYTHING), torch.float16, "sample_sdpa"),
        (HOPPER, torch.float32, "sample_sdpa"),
        (CPU, torch.bfloat16, "sample_sdpa"),
        (AttentionSupport("mps"), torch.float32, "sample_sdpa"),
    ],
)
def test_the_first_that_works_is_chosen(support: AttentionSupport, precision: torch.dtype, expected: str) -> None:
    assert choose_attention("auto", support, config(), precision).name == expected


def test_the_reason_names_what_stands_in_the_way() -> None:
    chosen = choose_attention("auto", AttentionSupport("cuda", (9, 0), frozenset({"varlen"})), config(), torch.bfloat16)
    expected = "attention: varlen (flash_attention_3 is not installed; flash_attention_2 is not installed)"
    assert str(chosen) == expected


def test_sliding_windows_are_left_to_what_knows_them() -> None:
    sliding = config(layer_types=["full_attention", "sliding_attention"])
    assert choose_attention("auto", HOPPER, sliding, torch.bfloat16).name == "flash_attention_3"
    chosen = choose_attention("auto", CPU, sliding, torch.float32)
    assert chosen.name == "sdpa"
    assert "sliding windows" in chosen.reason
    for name in ("varlen", "sample_sdpa"):
        with pytest.raises(ConfigError, match="sliding windows"):
            choose_attention(name, HOPPER, sliding, torch.bfloat16)


def test_dropout_is_left_to_what_has_it() -> None:
    dropping = config(attention_dropout=0.1)
    assert choose_attention("auto", HOPPER, dropping, torch.bfloat16).name == "flash_attention_2"
    with pytest.raises(ConfigError, match="no dropout"):
        choose_attention("varlen", HOPPER, dropping, torch.bfloat16)


def test_heads_that_torchs_kernel_does_not_take_are_left_to_sdpa() -> None:
    only_torch = AttentionSupport("cuda", (9, 0), frozenset({"varlen"}))
    chosen = choose_attention("auto", only_torch, config(head_dim=84), torch.bfloat16)
    assert chosen.name == "sample_sdpa"
    assert "width 84" in chosen.reason


@pytest.mark.parametrize(
    ("setting", "support", "precision", "reason"),
    [
        ("flash_attention_2", CPU, torch.bfloat16, "needs a CUDA device"),
        ("varlen", CPU, torch.bfloat16, "needs a CUDA device"),
        ("flash_attention_3", AttentionSupport("cuda", (9, 0)), torch.bfloat16, "not installed"),
        ("varlen", AttentionSupport("cuda", (9, 0)), torch.bfloat16, "torch 2.13"),
        ("flash_attention_3", AMPERE, torch.bfloat16, "capability 8.0"),
        ("varlen", HOPPER, torch.float32, "not in float32"),
        ("flash_attention_2", HOPPER, torch.float32, "not in float32"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(
    setting: AttentionName, support: AttentionSupport, precision: torch.dtype, reason: str
) -> None:
    with pytest.raises(ConfigError, match=rf"model.attention: {setting}.*{reason}"):
        choose_attention(setting, support, config(), precision)


def test_the_tower_loops_where_it_would_be_told_where_samples_start() -> None:
    """Transformers hands the bounds of samples to the tower as well, under the names of the bounds of images."""
    for name in ("flash_attention_3", "flash_attention_2", "varlen"):
        assert "flash" in choose_attention(name, HOPPER, config(), torch.bfloat16).vision
        assert choose_attention(name, HOPPER, config(), torch.bfloat16, recurrent=True).vision == "sdpa"


def test_a_cpu_offers_nothing_that_needs_a_gpu(small_model_dir: Path) -> None:
    support = find_attention_support(torch.device("cpu"))
    assert support == CPU
    chosen = choose_attention("auto", support, read_model_files(str(small_model_dir)).shapes, torch.float32)
    assert str(chosen) == "attention: sample_sdpa"


@pytest.mark.parametrize("setting", ["auto", "sdpa"])
def test_training_says_what_computes_attention(
    small_model_dir: Path, tmp_path: Path, setting: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "triptych")
    data = tiny.write_dataset(tmp_path, 4)
    run_file = tiny.write_run(tmp_path, small_model_dir, data, model={"path": str(small_model_dir)})
    settings = load(run_file, (f"model.attention={setting}",))
    out = LogReporter()
    train(settings, prepare(settings, ("train",), out), out)
    assert {"auto": "attention: sample_sdpa\n", "sdpa": "attention: sdpa (as set)\n"}[setting] in caplog.text


def test_training_refuses_flash_attention_without_a_gpu(small_model_dir: Path, tmp_path: Path) -> None:
    run_file = tiny.write_run(tmp_path, small_model_dir, tiny.write_dataset(tmp_path, 4))
    settings = load(run_file, ("model.attention=flash_attention_2",))
    out = LogReporter()
    with pytest.raises(ConfigError, match="needs a CUDA device"):
        train(settings, prepare(settings, ("train",), out), out)
