"""How full are the rows of a million samples, how long does planning them take, and how much memory?

Method: lengths of the samples that workload.py writes, without writing them. An image costs what `Geometry` says of
its size under 262,144 pixels, a square of 28 x 28 px per token. Text costs TOKENS_PER_WORD per word, and the chat
markup 11 tokens per sample, 10 per exchange and 2 per image. `make_plan` packs them into rows of 8,192 tokens and
32,768 patches (tokens bind) or 16,384 (patches bind), each case in a process of its own; memory is the peak resident
size while planning less the one before.

Bound: no packing needs fewer rows than tokens / 8,192 or patches / limit, rounded up. Martello and Toth's bound is no
better here, since no sample is over half a row. Result: benchmarks/results/packing.jsonl.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headers import SIZES
from triptych.images.geometry import Geometry
from triptych.planning.plan import BatchSpec, Lengths, make_plan
from workload import draw_shapes

SAMPLES = 1_000_000
FILES = 20_000
MAX_PIXELS = 262_144
ROW_TOKENS = 8192
CASES = ((32_768, 1), (32_768, 3), (16_384, 1))
"""(patches per row, epochs)"""

TOKENS_PER_WORD = 1.23
"""Of the work's texts in Qwen2-VL's tokenizer, with their commas and full stops: 186,078 tokens for 151,654 words."""
SYSTEM_TOKENS = 11
EXCHANGE_TOKENS = 10
MARK_TOKENS = 2

RESULTS = Path(__file__).parent / "results" / "packing.jsonl"


def draw_lengths(samples: int, seed: int = 0) -> Lengths:
    """Lengths of ``samples`` samples of the work."""
    shapes = draw_shapes(samples, FILES, np.random.default_rng(seed))
    geometry = Geometry(patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=56 * 56, max_pixels=MAX_PIXELS)
    cost = np.array([geometry.tokens(*geometry.resized(*size)) for size in SIZES])
    image_tokens = _sum_per_sample(cost[shapes.chosen % len(SIZES)], shapes.images)
    words = _sum_per_sample(shapes.questions + shapes.answers, shapes.turns)
    markup = SYSTEM_TOKENS + EXCHANGE_TOKENS * shapes.turns + MARK_TOKENS * shapes.images
    tokens = markup + np.rint(TOKENS_PER_WORD * words).astype(np.int64) + image_tokens
    return Lengths(tokens, image_tokens * geometry.merge_size**2)


def _sum_per_sample(values: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.add.reduceat(values, np.cumsum(counts) - counts)


def plan(patches: int, epochs: int) -> dict[str, float]:
    """Plan the work in this process: seconds, rows, their fill, their bound, and megabytes."""
    lengths = draw_lengths(SAMPLES)
    assert lengths.tokens.max() <= ROW_TOKENS / 2
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    began = time.perf_counter()
    rows = len(make_plan(lengths, BatchSpec(tokens=ROW_TOKENS, patches=patches), epochs=epochs, seed=0))
    seconds = time.perf_counter() - began
    token_rows, patch_rows = lengths.tokens.sum() / ROW_TOKENS, lengths.patches.sum() / patches
    return {
        "patches": patches,
        "epochs": epochs,
        "mean_tokens": float(lengths.tokens.mean()),
        "seconds": seconds,
        "rows": rows,
        "bound": epochs * int(np.ceil(max(token_rows, patch_rows))),
        "token_fill": epochs * token_rows / rows,
        "patch_fill": epochs * patch_rows / rows,
        "memory_mb": _memory("VmHWM") - before,
    }


def _memory(field: str) -> float:
    """A memory reading of this process by its name in the system's status file, MB."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith(field + ":")).split()[1]) / 1024


def main() -> None:
    entry = {"python": platform.python_version(), "machine": platform.machine(), "cases": []}
    print("patches  epochs   seconds      rows     bound  tokens  patches  memory")
    for case in CASES:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            found = process.submit(plan, *case).result()
        entry["cases"].append(found)
        print(
            "{patches:7,} {epochs:7} {seconds:9.2f} {rows:9,} {bound:9,} {token_fill:7.2%} {patch_fill:8.2%} "
            "{memory_mb:4.0f} MB".format(**found)
        )
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    main()
