"""How much faster is measuring an image's header than decoding the image?

Method: the same files, one process, warm cache; each file measured and decoded in turn, medians over the files. The
decode is the one that training does (`load_rgb`), without its resize. Result: benchmarks/results/headers.jsonl.
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from triptych.data.images import measure
from triptych.data.pixels import load_rgb

SIZES = ((480, 640), (768, 1024), (960, 1280), (1080, 1920), (2000, 3000))
FILES_PER_KIND = 8
RESULTS = Path(__file__).parent / "results" / "headers.jsonl"


def photo(height: int, width: int, random: np.random.Generator) -> Image.Image:
    """Smooth shapes with sensor-like noise: compresses about as a photograph does."""
    coarse = Image.fromarray(random.integers(0, 256, (height // 40, width // 40, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    return Image.fromarray((smooth + random.normal(0, 4, smooth.shape)).clip(0, 255).astype(np.uint8))


def seconds(function: Callable[[str], object], path: str) -> float:
    began = time.perf_counter()
    function(path)
    return time.perf_counter() - began


def main() -> None:
    random = np.random.default_rng(0)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("jpg", "png", "webp"):
            measured, decoded = [], []
            for number in range(FILES_PER_KIND):
                path = f"{folder}/{number}.{suffix}"
                photo(*SIZES[number % len(SIZES)], random).save(path, quality=90)
                for function, times in ((measure, measured), (load_rgb, decoded)):
                    seconds(function, path)  # warm
                    times.append(seconds(function, path))
            header, decode = statistics.median(measured), statistics.median(decoded)
            rows[suffix] = {"header_us": header * 1e6, "decode_ms": decode * 1e3, "ratio": sum(decoded) / sum(measured)}
            ratio = rows[suffix]["ratio"]
            print(f"{suffix:5} header {header * 1e6:7.0f} us   decode {decode * 1e3:7.1f} ms   ratio {ratio:6.0f}")
    entry = {"python": platform.python_version(), "pillow": PIL.__version__, "machine": platform.machine(), **rows}
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    main()
