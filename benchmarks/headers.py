"""How much faster is measuring an image's header than decoding the image?

Method: the same files, one process, warm cache; each file measured and decoded in turn. Times are medians over the
files, ratios are of the sums over them; `mix` is all files together. The decode is the one that training does
(`load_rgb`), without its resize. Result: benchmarks/results/headers.jsonl.
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

from triptych.images.measure import measure
from triptych.images.pixels import load_rgb

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


def row(measured: list[float], decoded: list[float]) -> dict[str, float]:
    """Medians over files, and the ratio of the sums."""
    header, decode = statistics.median(measured), statistics.median(decoded)
    return {"header_us": header * 1e6, "decode_ms": decode * 1e3, "ratio": sum(decoded) / sum(measured)}


def main() -> None:
    random = np.random.default_rng(0)
    times: dict[str, tuple[list[float], list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("jpg", "png", "webp"):
            measured, decoded = times[suffix] = [], []
            for number in range(FILES_PER_KIND):
                path = f"{folder}/{number}.{suffix}"
                photo(*SIZES[number % len(SIZES)], random).save(path, quality=90)
                for function, taken in ((measure, measured), (load_rgb, decoded)):
                    seconds(function, path)  # warm
                    taken.append(seconds(function, path))
    kinds = list(times.values())
    times["mix"] = [each for kind in kinds for each in kind[0]], [each for kind in kinds for each in kind[1]]
    rows = {name: row(*taken) for name, taken in times.items()}
    for name, values in rows.items():
        print(
            "{0:5} header {header_us:7.0f} us   decode {decode_ms:7.1f} ms   ratio {ratio:6.0f}".format(name, **values)
        )
    entry = {"python": platform.python_version(), "pillow": PIL.__version__, "machine": platform.machine(), **rows}
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    main()
