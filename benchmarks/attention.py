"""What does attention over a packed row cost, each sample by itself or the whole row under a mask?

Method: one core, float32. `attention` is the attention of one layer of Qwen2-VL-2B (12 heads of 128, 2 of keys and
values), forward and backward, as a language layer calls it. `step` is the loss and its gradients of a Qwen2-VL of two
layers of width 512 over a row of text, every token supervised; the longest row goes without. Rows of 1,024 to 8,192
tokens hold samples of about 256 or 1,024 tokens, half as long to one and a half times, drawn once. Both ways run in
turn, three times each; times are medians. `kept` are the bytes that the forward pass of the step keeps for the backward
pass, weights not counted.
Result: benchmarks/results/attention.jsonl.
"""

from __future__ import annotations

import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, Qwen2VLConfig, Qwen2VLForConditionalGeneration, set_seed
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from triptych.forward.attention import IMPLEMENTATIONS, Attention
from triptych.forward.attention_kernels import SampleBounds, attend_per_sample
from triptych.run.settings import AttentionName

ROWS = (1024, 2048, 4096, 8192)
STEP_ROWS = ROWS[:-1]
SAMPLES = (256, 1024)
"""Tokens of a sample, mean"""
WAYS: tuple[AttentionName, ...] = ("sdpa", "sample_sdpa")
REPEATS = 3
HEADS, SHARED_HEADS, HEAD_WIDTH = 12, 2, 128
VOCABULARY = 1000
RESULTS = Path(__file__).parent / "results" / "attention.jsonl"


def draw_bounds(tokens: int, mean: int) -> SampleBounds:
    """Samples that fill a row of ``tokens`` exactly; the last one is what remains."""
    random = np.random.default_rng(tokens + mean)
    starts = [0]
    while starts[-1] < tokens:
        starts.append(min(tokens, starts[-1] + int(random.integers(mean // 2, mean * 3 // 2))))
    lengths = tuple(end - start for start, end in pairwise(starts))
    return SampleBounds(torch.tensor(starts, dtype=torch.int32), max(lengths), lengths)


def attention_ways(bounds: SampleBounds) -> dict[AttentionName, Callable[[], None]]:
    """One layer's attention, forward and backward, both ways."""
    tokens = sum(bounds.lengths)
    query, key, value = (
        torch.randn(1, tokens, heads, HEAD_WIDTH).transpose(1, 2).requires_grad_()
        for heads in (HEADS, SHARED_HEADS, SHARED_HEADS)
    )
    sample = torch.arange(len(bounds.lengths)).repeat_interleave(torch.tensor(bounds.lengths))
    mask = ((sample[:, None] == sample) & torch.ones(tokens, tokens, dtype=torch.bool).tril())[None, None]
    layer: Any = SimpleNamespace(num_key_value_groups=HEADS // SHARED_HEADS, is_causal=True)

    def masked() -> None:
        sdpa_attention_forward(layer, query, key, value, mask)[0].sum().backward()

    def by_sample() -> None:
        attend_per_sample(layer, query, key, value, None, sample_bounds=bounds)[0].sum().backward()

    return {"sdpa": masked, "sample_sdpa": by_sample}


def make_model() -> PreTrainedModel:
    """Two language layers of width 512, and a tower that no text ever enters."""
    set_seed(0)
    text = {
        "hidden_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "intermediate_size": 2048,
        "vocab_size": VOCABULARY,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
    }
    vision = {"depth": 1, "embed_dim": 64, "hidden_size": 512, "num_heads": 2}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision))


def step_ways(bounds: SampleBounds) -> dict[AttentionName, Callable[[], None]]:
    """Loss and gradients of a row of text, both ways."""
    model = make_model()
    tokens = sum(bounds.lengths)
    positions = torch.cat([torch.arange(length) for length in bounds.lengths]).expand(4, 1, tokens)
    ids = torch.randint(0, VOCABULARY, (1, tokens))
    targets = torch.randint(0, VOCABULARY, (tokens,))

    def way(name: AttentionName) -> Callable[[], None]:
        own = {} if name == "sdpa" else {"sample_bounds": bounds}

        def step() -> None:
            Attention(name, *IMPLEMENTATIONS[name]).install(model)
            model.zero_grad()
            logits = model(input_ids=ids, position_ids=positions, use_cache=False, **own).logits
            nn.functional.cross_entropy(logits[0], targets).backward()

        return step

    return {name: way(name) for name in WAYS}


def kept_bytes(step: Callable[[], None]) -> int:
    """What the forward pass keeps; of the weights, which are kept too, every run holds the same."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter) and not isinstance(tensor._base, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(kept.values())


def seconds_in_turn(ways: dict[AttentionName, Callable[[], None]]) -> dict[AttentionName, float]:
    """Median seconds of each way."""
    times: dict[AttentionName, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, run in ways.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(own) for name, own in times.items()}


def main() -> None:
    torch.set_num_threads(1)
    entry: dict[str, Any] = {"torch": torch.__version__, "machine": platform.machine(), "cases": []}
    print("what       tokens  samples    masked  by sample  ratio  masked MB  by sample MB")
    for tokens, mean in itertools.product(ROWS, SAMPLES):
        bounds = draw_bounds(tokens, mean)
        for what in ("attention", "step") if tokens in STEP_ROWS else ("attention",):
            ways = attention_ways(bounds) if what == "attention" else step_ways(bounds)
            times = seconds_in_turn(ways)
            kept = {name: kept_bytes(run) for name, run in ways.items()} if what == "step" else {}
            case = {"what": what, "tokens": tokens, "mean": mean, "samples": len(bounds.lengths)}
            entry["cases"].append({**case, "seconds": times, "kept_bytes": kept})
            masked, own = times["sdpa"], times["sample_sdpa"]
            line = f"{what:9} {tokens:7,} {len(bounds.lengths):8} {masked:8.3f} s {own:8.3f} s {masked / own:6.1f}"
            print(line + "".join(f" {size / 1e6:10.1f}" for size in kept.values()), flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    main()
