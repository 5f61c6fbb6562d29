"""Tiny random models, their tokenizer, images and data sets: everything the tests need, made here in a second."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import families

WORDS = (
    "Compare the left image with the right one.",
    "Which digit is larger?",
    "The second shows a cat, the first a dog.",
    "请比较这两张图片。",
    "第一张图里有什么？",
    "两张图片相同。",
    "Answer in one word: yes or no.",
    "Both are equal.",
)

ANSWERS = ("The first.", "Both are equal.", "第二张图更大。", "No, it is a dog.", "yes")


def write_model(
    folder: Path,
    *,
    family: str = "qwen2_vl",
    seed: int = 0,
    min_pixels: int = 56 * 56,
    max_pixels: int = 28 * 28 * 1280,
    chat_template: str | None = None,
    texts: Sequence[str] = (),
) -> Path:
    """A random two-tower model of under a million parameters as a plain model folder; see ``families.py``.

    The tokenizer learns from ``WORDS`` and ``texts``.
    """
    texts = [*[" ".join(WORDS)] * 20, *texts]
    limits = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    if family == "qwen2_vl":
        from triptych.quickstart.tiny import IMAGE_PROCESSOR, write_tiny_model

        write_tiny_model(folder, texts, seed)
        (folder / "preprocessor_config.json").write_text(json.dumps({**IMAGE_PROCESSOR, "size": limits}))
    else:
        families.write_family(folder, family, texts, seed=seed, limits=limits, template=chat_template)
    return folder


def image(height: int, width: int, *, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth colour with some noise: compresses like a photo, and every pixel matters."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / (9 + k) + random.uniform(0, 6)) + np.cos(columns / (7 + k)) for k in range(3)]
    values = 127 + 50 * np.stack(waves, axis=-1) + random.normal(0, 8, (height, width, 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert(mode)


def write_image(path: Path, height: int, width: int, *, seed: int = 0) -> Path:
    """Write an image in the format that the suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image(height, width, seed=seed).save(path)
    return path


def record(images: Sequence[str], question: str, answer: str, **extra: Any) -> dict[str, Any]:
    """A ShareGPT record of one exchange; ``question`` holds the marks."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, "images": list(images), **extra}


def write_dataset(folder: Path, samples: int, *, seed: int = 0, max_images: int = 4, name: str = "train.json") -> Path:
    """``samples`` good records with 0 to ``max_images`` images each, some of two exchanges, in two languages."""
    random = np.random.default_rng(seed)
    records = []
    for number in range(samples):
        count = int(random.integers(0, max_images + 1))
        images = []
        for place in range(count):
            height, width = (int(side) for side in random.integers(40, 130, 2))
            suffix = "jpg" if place % 2 else "png"
            path = folder / "images" / f"{Path(name).stem}-{number}-{place}.{suffix}"
            images.append(str(write_image(path, height, width, seed=number * 10 + place).relative_to(folder)))
        words = " ".join(random.choice(WORDS, int(random.integers(1, 4))))
        item = record(images, "<image>" * count + words, str(random.choice(ANSWERS)), task=f"task-{number % 2}")
        if number % 3 == 0:
            item["conversations"] += [
                {"from": "human", "value": "And why?"},
                {"from": "gpt", "value": str(random.choice(ANSWERS))},
            ]
        records.append(item)
    path = folder / name
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return path


def write_long_dataset(folder: Path, samples: int) -> Path:
    """Samples of one or two images and hundreds of words: what is filled up to a whole chunk is a small part."""
    records = []
    for number in range(samples):
        paths = [folder / "images" / f"long-{number}-{place}.png" for place in range(1 + number % 2)]
        images = [str(write_image(path, 90, 70, seed=number).relative_to(folder)) for path in paths]
        words = " ".join(WORDS[(number + place) % len(WORDS)] for place in range(150))
        records.append(record(images, "<image>" * len(images) + words, words))
    path = folder / "long.json"
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return path


def write_run(folder: Path, model: Path, data: Path, /, **settings: Any) -> Path:
    """A run file over ``data``; ``settings`` are merged into its groups."""
    content: dict[str, Any] = {
        "model": {"path": str(model)},
        "data": {"train": [{"path": str(data)}], "workers": 0},
        "batch": {"samples": 4},
        "train": {"learning_rate": 1e-3, "log_every": 1, "show": {"samples": 0}},
        "output": str(folder / "run"),
    }
    for group, values in settings.items():
        content[group] = {**content.get(group, {}), **values} if isinstance(values, dict) else values
    path = folder / "run.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return path
