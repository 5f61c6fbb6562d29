"""How near do the workers come to the bare decode, and what does `data.decode: fast` gain and cost?

Method: photo-like JPEGs (workload.py) of five sizes, all shown at 262,144 pixels at most. *Bare* is the limit: a pool
of as many processes reads each file and does one Pillow decode and one bicubic resize to the same target, and hands
nothing over. *Exact* and *fast* are the real path of training: rows of four images out of the row loader, decoded
by worker processes into shared memory, taken and mapped by this process. The three take turns, start-up and the first
rows are left out, files are in the page cache. Rates are medians over the rounds, ratios are medians of the ratios
within a round. CPU seconds per image are those of the processes that decode, which other work on the machine hardly
moves. PSNR is of the bytes of all patches of a size.

    python benchmarks/pixels.py

Result: benchmarks/results/pixels.jsonl.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from headers import SIZES
from triptych.images.geometry import SizedImage
from triptych.planning.plan import BatchSpec, make_plan
from triptych.rows.builder import RowBuilder
from triptych.rows.loader import Loading, RowLoader
from triptych.run.prepare import Prepared, prepare
from triptych.run.settings import RunSettings
from triptych.terminal import Terminal
from workload import commit, write_pool

MODEL = Path(__file__).parent.parent / "src" / "triptych" / "assets" / "tiny_base"
MAX_PIXELS = 262_144
PER_ROW = 4
RESULTS = Path(__file__).parent / "results" / "pixels.jsonl"

Rate = tuple[float, float]
"""Images per second, and CPU seconds per image."""


def write_work(folder: Path, size: tuple[int, int], rows: int) -> Prepared:
    """Rows of four images over eight files of one size."""
    names = write_pool(folder / "images", 8, 0, [size], 8)
    chosen = np.random.default_rng(0).integers(0, len(names), (rows, PER_ROW))
    records = [
        {
            "conversations": [{"from": "human", "value": "<image>" * PER_ROW}, {"from": "gpt", "value": "7"}],
            "images": [f"images/{names[number]}" for number in row],
        }
        for row in chosen
    ]
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    os.environ["TRIPTYCH_CACHE"] = str(folder / "cache")
    content: dict[str, Any] = {
        "model": {"path": str(MODEL)},
        "data": {"train": [{"path": str(data)}], "max_pixels": MAX_PIXELS},
        "batch": {"samples": 1},
        "output": str(folder / "run"),
    }
    return prepare(RunSettings.model_validate(content), ("train",), Terminal())


def bare(image: SizedImage) -> None:
    """The least that can be done: read, decode, resize."""
    target = image.resized_width, image.resized_height
    Image.open(image.location).resize(target, Image.Resampling.BICUBIC)


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of these processes so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def limit(images: Sequence[SizedImage], workers: int) -> Rate:
    """Of the bare decode."""
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(bare, images[: 2 * workers]))
        pids = list(pool._processes)  # as it may be asked for nothing else
        began, cpu = time.perf_counter(), cpu_seconds(pids)
        list(pool.map(bare, images, chunksize=PER_ROW))
        return len(images) / (time.perf_counter() - began), (cpu_seconds(pids) - cpu) / len(images)


def worker_path(loader: RowLoader, workers: int) -> Rate:
    """Of the row loader, from the moment when every process has built a row."""
    skipped = 2 * workers
    for number in range(skipped):
        loader.take(number)
    assert loader._workers is not None
    pids = [process.pid for process in loader._workers.processes]
    began, cpu, ahead = time.perf_counter(), cpu_seconds(pids), len(loader._ready)
    rows = len(loader.plan) - skipped - workers
    for number in range(skipped, skipped + rows):
        loader.take(number)
    rows += len(loader._ready) - ahead  # that were done before, and that are done already
    taken = time.perf_counter() - began, cpu_seconds(pids) - cpu
    loader.close()
    return rows * PER_ROW / taken[0], taken[1] / (rows * PER_ROW)


def psnr(prepared: Prepared) -> float:
    """Of fast against exact, over every file, dB."""
    corpus, filler = prepared.corpora["train"], prepared.encoder.template.filler()
    exact = RowBuilder(corpus, filler)
    fast = replace(exact, decode="fast")
    off = [
        np.square(fast.build([row]).pixels.astype(np.float64) - exact.build([row]).pixels).mean() for row in range(6)
    ]
    return 10 * math.log10(255**2 / statistics.mean(off)) if any(off) else math.inf


def measure(size: tuple[int, int], rows: int, workers: int, rounds: int) -> dict[str, Any]:
    """Rates of one size of images."""
    with tempfile.TemporaryDirectory() as name:
        prepared = write_work(Path(name), size, rows)
        corpus = prepared.corpora["train"]
        plan = make_plan(corpus.lengths, BatchSpec(samples=1), epochs=1, seed=0)
        builder = RowBuilder(corpus, prepared.encoder.template.filler())
        images = [image for row in range(len(plan)) for image in corpus.images(int(plan.row(row)[0]))]
        ways: dict[str, Callable[[], Rate]] = {
            "bare": lambda: limit(images, workers),
            "exact": lambda: worker_path(RowLoader(plan, builder, Loading(workers)), workers),
            "fast": lambda: worker_path(RowLoader(plan, replace(builder, decode="fast"), Loading(workers)), workers),
        }
        found: dict[str, list[Rate]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, run in ways.items():
                found[way].append(run())
        return {
            "megapixels": round(size[0] * size[1] / 1e6, 2),
            "images_per_second": {way: statistics.median(rate for rate, _ in rates) for way, rates in found.items()},
            "cpu_ms": {way: statistics.median(cpu for _, cpu in rates) * 1e3 for way, rates in found.items()},
            "exact_of_bare": _ratio(found["exact"], found["bare"], 0),
            "exact_of_bare_cpu": _ratio(found["bare"], found["exact"], 1),
            "fast_of_exact": _ratio(found["fast"], found["exact"], 0),
            "fast_of_exact_cpu": _ratio(found["exact"], found["fast"], 1),
            "fast_psnr_db": psnr(prepared),
        }


def _ratio(over: Sequence[Rate], under: Sequence[Rate], part: int) -> float:
    return statistics.median(first[part] / second[part] for first, second in zip(over, under, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the workers' pixel path against the bare decode.")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="roughly, of one measurement")
    options = parser.parse_args()
    sizes = []
    for size in SIZES:
        estimate = 0.003 + 0.009 * size[0] * size[1] / 1e6  # seconds per image
        rows = max(8 * options.workers, int(options.seconds * options.workers / estimate / PER_ROW))
        found = measure(size, rows, options.workers, options.rounds)
        sizes.append(found)
        print(
            "{megapixels:5.2f} MP   bare {bare:6.1f}/s   exact {exact:6.1f}/s   fast {fast:6.1f}/s   "
            "exact/bare {exact_of_bare:.3f} (CPU {exact_of_bare_cpu:.3f})   "
            "fast/exact {fast_of_exact:.2f} (CPU {fast_of_exact_cpu:.2f})   PSNR {fast_psnr_db:.1f} dB".format(
                **found, **found["images_per_second"]
            ),
            flush=True,
        )
    rates = [found["images_per_second"] for found in sizes]
    mix = {way: len(sizes) / sum(1 / each[way] for each in rates) for way in ("bare", "exact", "fast")}
    cpu = {way: statistics.mean(found["cpu_ms"][way] for found in sizes) for way in ("bare", "exact", "fast")}
    shares = mix["exact"] / mix["bare"], cpu["bare"] / cpu["exact"]
    print(f"as many of each   exact/bare {shares[0]:.3f} (CPU {shares[1]:.3f})")
    entry = {
        "python": platform.python_version(),
        "pillow": PIL.__version__,
        "commit": commit(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "workers": options.workers,
        "sizes": sizes,
        "mix_exact_of_bare": shares[0],
        "mix_exact_of_bare_cpu": shares[1],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    main()
