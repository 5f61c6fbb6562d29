"""How long do ranks wait for each other, with rows in the order drawn and balanced, on 2 to 512 of them?

Method: a simulation from exact lengths; nothing is trained. `make_plan` plans an epoch of a million samples: without
costs (`drawn`), with them (`dealt`), and with packed rows of similar cost in one step (`balanced`). The ranks of a
step wait for the one with most to do (DDP), or for each other after every row (FSDP, `sharded`). Idle share is what
all ranks together wait, of all their time, if time is as FLOPs: 1 - sum of costs / (ranks * sum over steps of the
largest). Costs are those of `triptych.planning.cost` for
Qwen2-VL-2B, with LoRA on the language part (the tower frozen) and
trained in full.

Work: `bench` are the samples of workload.py under 262,144 pixels per image, modelled as in packing.py, in rows of
8,192 tokens; answers are supervised. `tail` are log-normal ones: 0 to 40 images (median 2), each of 16 to 1,024
tokens (median 200), and texts of 20 tokens or more (median 150, one in a hundred over 1,900), half of each supervised;
images shrink where a sample would be over a row of 8,192 or 16,384 tokens. `samples` are rows of exactly four
samples instead.

`spread` is the standard deviation of a step's targets over their mean: how unlike each other steps are. `stored` is the
idle share if the tower's features were stored and so the tower cost nothing, which planning does not know.

    python benchmarks/balance.py                     all; benchmarks/results/balance.jsonl
    python benchmarks/balance.py --samples 100000    quicker; kept as well, with its number of samples
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headers import SIZES
from packing import FILES, MAX_PIXELS, TOKENS_PER_WORD, draw_lengths
from triptych.family.shapes import read_shapes
from triptych.images.geometry import Geometry
from triptych.planning.balance import idle_share
from triptych.planning.cost import SampleCost, model_cost
from triptych.planning.plan import BatchSpec, Lengths, Plan, make_plan
from triptych.run.settings import ModelSettings
from workload import commit, draw_shapes

RANKS = (2, 8, 64, 512)
ROWS_PER_RANK = (1, 2, 8)
RESULTS = Path(__file__).parent / "results" / "balance.jsonl"
MERGE = 4
"""Patches to one token."""

# As in the released config.json.
QWEN2_VL_2B: dict[str, Any] = {
    "model_type": "qwen2_vl",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": 1536,
        "mlp_ratio": 4,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}
TOWERS: dict[str, dict[str, Any]] = {
    "frozen": {"train": "lora", "freeze": ["vision", "merger"]},
    "trained": {"train": "full"},
}


@dataclass(frozen=True, slots=True)
class Work:
    """K samples with I images."""

    lengths: Lengths
    supervised: NDArray[np.int64]
    """(K,) tokens"""
    squares: NDArray[np.float64]
    """(K,) sum of the squares of each image's patches"""


def make_work(
    text: NDArray[np.int64], supervised: NDArray[np.int64], images: NDArray[np.int64], image_tokens: NDArray[np.int64]
) -> Work:
    """From (K,) text tokens, supervised tokens and images of each sample, and the (I,) tokens of each image."""
    owners = np.repeat(np.arange(len(text)), images)
    tokens = np.bincount(owners, image_tokens, len(text)).astype(np.int64)
    squares = np.bincount(owners, (MERGE * image_tokens.astype(np.float64)) ** 2, len(text))
    return Work(Lengths(text + tokens, MERGE * tokens), supervised, squares)


def bench_work(samples: int) -> Work:
    """The samples of workload.py, as packing.py draws them."""
    lengths, shapes = draw_lengths(samples), draw_shapes(samples, FILES, np.random.default_rng(0))
    geometry = Geometry(patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=56 * 56, max_pixels=MAX_PIXELS)
    image_tokens = np.array([geometry.tokens(*geometry.resized(*size)) for size in SIZES])[shapes.chosen % len(SIZES)]
    words = np.bincount(np.repeat(np.arange(samples), shapes.turns), shapes.answers, samples)
    supervised = np.rint(TOKENS_PER_WORD * words).astype(np.int64)
    return make_work(lengths.tokens - lengths.patches // MERGE, supervised, shapes.images, image_tokens)


def tail_work(samples: int, longest: int) -> Work:
    """Log-normal samples of at most ``longest`` tokens."""
    random = np.random.default_rng(1)
    images = np.minimum(random.lognormal(0.8, 0.9, samples), 40).astype(np.int64)
    text = np.clip(random.lognormal(5, 1.1, samples), 20, longest).astype(np.int64)
    image_tokens = np.clip(random.lognormal(5.3, 0.7, int(images.sum())), 16, 1024)
    owners = np.repeat(np.arange(samples), images)
    shown = np.bincount(owners, image_tokens, samples)
    fitting = np.minimum(1, (longest - text) / np.maximum(shown, 1))
    return make_work(text, text // 2, images, np.floor(image_tokens * fitting[owners]).astype(np.int64))


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the results."""

    work: str
    batch: str
    tower: str
    rows_per_rank: int
    ranks: int
    steps: int
    drawn: float
    """Idle share with rows in the order drawn"""
    dealt: float
    """Rows given to ranks by cost, each step's rows as drawn"""
    balanced: float
    """The same, and rows of similar cost share a step (``batch.group_similar``; with ``samples`` as dealt)"""
    sharded_drawn: float
    sharded: float
    spread_drawn: float
    spread: float
    stored_drawn: float
    stored: float


def cases(samples: int) -> Iterator[Case]:
    """All of them, work by work."""
    works = {
        "bench 8k": (bench_work(samples), 8192),
        "tail 8k": (tail_work(samples, 8192), 8192),
        "tail 16k": (tail_work(samples, 16_384), 16_384),
    }
    for name, (work, tokens) in works.items():
        for kind, batch in (
            ("tokens", BatchSpec(tokens=tokens, patches=MERGE * tokens)),
            ("samples", BatchSpec(samples=4)),
        ):
            for tower, settings in TOWERS.items():
                cost = model_cost(
                    ModelSettings(path="Qwen/Qwen2-VL-2B-Instruct", **settings).recipe, read_shapes(QWEN2_VL_2B)
                )
                for rows_per_rank in ROWS_PER_RANK:
                    for ranks in RANKS:
                        yield simulate((name, kind, tower), work, batch, cost, rows_per_rank, ranks)


def simulate(
    names: tuple[str, str, str], work: Work, batch: BatchSpec, cost: SampleCost, rows_per_rank: int, ranks: int
) -> Case:
    """Plan an epoch in both ways and see who waits."""
    rows = rows_per_rank * ranks
    costs, without_tower = (
        each.of(work.lengths, work.squares, work.supervised)
        for each in (cost, replace(cost, patch=0.0, patch_pair=0.0))
    )
    grouped = replace(batch, group_similar=batch.tokens is not None)
    drawn, dealt, balanced = (
        make_plan(work.lengths, each, epochs=1, seed=0, world_size=ranks, rows_per_step=rows, costs=given)
        for each, given in ((batch, None), (batch, costs), (grouped, costs))
    )

    def both(values: NDArray[np.int64], wait: int) -> tuple[float, ...]:
        return tuple(idle_share(plan.sums(values), wait, ranks) for plan in (drawn, balanced))

    def spread(plan: Plan) -> float:
        targets = np.add.reduceat(plan.sums(work.supervised), np.arange(0, len(plan), rows))
        return float(targets.std() / targets.mean())

    return Case(
        *names,
        rows_per_rank,
        ranks,
        -(-len(balanced) // rows),
        *(idle_share(plan.sums(costs), rows, ranks) for plan in (drawn, dealt, balanced)),
        *both(costs, ranks),
        spread(drawn),
        spread(balanced),
        *both(without_tower, rows),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulate how long ranks wait for each other.")
    parser.add_argument("--samples", type=int, default=1_000_000)
    options = parser.parse_args()
    entry: dict[str, Any] = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "commit": commit(),
        "samples": options.samples,
        "cases": [],
    }
    print("work      batch   tower   rows ranks  steps | idle: drawn dealt balanced | sharded | spread | stored")
    for case in cases(options.samples):
        entry["cases"].append(asdict(case))
        print(
            "{work:9} {batch:7} {tower:7} {rows_per_rank:4} {ranks:5} {steps:6} | {drawn:6.1%} {dealt:6.1%} "
            "{balanced:6.1%} | "
            "{sharded_drawn:6.1%} {sharded:6.1%} | {spread_drawn:.2f} {spread:.2f} | {stored_drawn:6.1%} "
            "{stored:6.1%}".format(**asdict(case)),
            flush=True,
        )
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    main()
