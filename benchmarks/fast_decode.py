"""What does `data.decode: fast` change: the pixels, and the loss?

*kernels*: images of hard edges and text, drawn at 2 to 12 megapixels and saved as JPEGs of quality 90, at five pixel
limits; PSNR of a scaled decode, then a resize by each kernel, against the exact pixels, by what the decoder divided the
sides by. It says which kernel `pixels.py` should take after which division.

*quickstart*: how many images of the quickstart fast touches (its sides are 56 to 84 px), and whether a byte differs.

*training*: the proportioned model of `feature_cache.py` (LoRA, the feature cache off) trains on the work (workload.py)
with exact and with fast pixels, from the same seed over the same rows; the relative difference of its losses,
step by step.

    python benchmarks/fast_decode.py

Result: benchmarks/results/fast_decode.jsonl.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from feature_cache import write_work
from triptych.images import measure, pixels
from triptych.images.geometry import Geometry
from triptych.quickstart.dataset import write_dataset
from triptych.run.prepare import prepare
from triptych.run.settings import RunSettings
from triptych.terminal import Terminal
from triptych.training.train import train
from workload import commit

RESULTS = Path(__file__).parent / "results" / "fast_decode.jsonl"
SIZES = ((1080, 1920), (2000, 3000), (3000, 4000))
LIMITS = (50_176, 112_896, 262_144, 501_760, 802_816)
KERNELS = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.HAMMING)
GEOMETRY = Geometry(patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=56 * 56, max_pixels=262_144)


def sharp(height: int, width: int, random: np.random.Generator) -> Image.Image:
    """Soft colours, and on them three hundred boxes, lines and words: edges as hard as they come."""
    coarse = Image.fromarray(random.integers(0, 256, (height // 40, width // 40, 3), np.uint8))
    image = coarse.resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for number in range(300):
        x, y = int(random.integers(width)), int(random.integers(height))
        to = x + int(random.integers(5, 200)), y + int(random.integers(5, 200))
        colour = (*random.integers(0, 256, 3).tolist(),)
        if number % 3 == 0:
            draw.rectangle((x, y, *to), fill=colour)
        elif number % 3 == 1:
            draw.line((x, y, *to), fill=colour, width=int(random.integers(1, 6)))
        else:
            draw.text((x, y), "Triptych 0123", fill=colour, font=ImageFont.load_default(int(random.integers(14, 60))))
    return image


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """dB"""
    return float(10 * np.log10(255**2 / np.square(one.astype(np.float64) - other).mean()))


def compare_kernels() -> dict[str, Any]:
    """Mean PSNR of each kernel, by what the decoder divided the sides by; and how many images that are."""
    random = np.random.default_rng(0)
    found: dict[int, list[list[float]]] = {}
    for size in SIZES:
        buffer = io.BytesIO()
        sharp(*size, random).save(buffer, "JPEG", quality=90)
        for limit in LIMITS:
            height, width = GEOMETRY.limit(max_pixels=limit).resized(*size)
            target = width, height
            exact = np.asarray(Image.open(buffer).resize(target, Image.Resampling.BICUBIC))
            row = []
            for kernel in KERNELS:
                image = Image.open(buffer)
                image.draft(None, target)
                divided = round(size[1] / image.width)
                row.append(psnr(np.asarray(image.resize(target, kernel)), exact))
            found.setdefault(divided, []).append(row)
    return {
        str(divided): {
            "cases": len(rows),
            **{kernel.name.lower(): statistics.mean(row[n] for row in rows) for n, kernel in enumerate(KERNELS)},
        }
        for divided, rows in sorted(found.items())
        if divided > 1
    }


def look_at_quickstart(folder: Path) -> dict[str, int]:
    """Images, and of how many fast makes other bytes."""
    write_dataset(folder, train_samples=8, test_samples=8, seed=0)
    limits = GEOMETRY.limit(max_pixels=84 * 84)
    files = sorted((folder / "images").rglob("*.*"))
    differing = 0
    for path in files:
        found = measure.measure(str(path))
        size = found.height, found.width
        resized = limits.resized(*size)
        ways = [pixels.load_patches(str(path), size, resized, limits, way) for way in ("exact", "fast")]
        differing += not np.array_equal(*ways)
    return {"images": len(files), "differing": differing}


def losses(content: dict[str, Any], folder: Path, decode: str) -> list[float]:
    """Of each step of two epochs."""
    data = {**content["data"], "decode": decode}
    settings = {**content["train"], "feature_cache": "off", "log_every": 1}
    output = str(folder / decode)
    run = RunSettings.model_validate({**content, "data": data, "train": settings, "output": output})
    train(run, prepare(run, ("train",), Terminal()), Terminal())
    lines = [json.loads(line) for line in (Path(output) / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def compare_losses(folder: Path, samples: int) -> dict[str, Any]:
    content = write_work(folder, samples)
    exact, fast = (losses(content, folder, decode) for decode in ("exact", "fast"))
    off = [abs(one / other - 1) for one, other in zip(fast, exact, strict=True)]
    return {"steps": len(off), "first": exact[0], "last": exact[-1], "mean": statistics.mean(off), "most": max(off)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the fast decode changes.")
    parser.add_argument("--samples", type=int, default=8)
    options = parser.parse_args()
    kernels = compare_kernels()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TRIPTYCH_CACHE"] = str(folder / "cache")
        quickstart = look_at_quickstart(folder / "quickstart")
        (folder / "work").mkdir()
        training = compare_losses(folder / "work", options.samples)
    entry = {
        "python": platform.python_version(),
        "pillow": PIL.__version__,
        "commit": commit(),
        "machine": platform.machine(),
        "kernels_psnr_db": kernels,
        "quickstart": quickstart,
        "training": training,
    }
    for key in ("kernels_psnr_db", "quickstart", "training"):
        print(key, json.dumps(entry[key], indent=1))
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    main()
