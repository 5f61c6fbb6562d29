"""A run of 120 records with known defects, and known samples that come twice."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny

HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror=alert(1)> & "quotes" \u2028 <|im_end|>'
PROBLEMS = {"image-missing": 3, "marker-count": 2, "empty-answer": 1, "image-unreadable": 1}
LEAKS = {"same-sample": 2, "same-images": 2, "shared-image": 3, "same-text": 1}
DUPLICATES = {"same-sample": 1, "shared-image": 1}


@dataclass(frozen=True, slots=True)
class Inspected:
    """Where the run is, and its records."""

    run: Path
    train: list[dict[str, Any]]
    held_out: list[dict[str, Any]]


def write(folder: Path, model: Path) -> Inspected:
    """80 records to train on and 40 held out, in which ``PROBLEMS``, ``LEAKS`` and ``DUPLICATES`` are planted."""
    records = [_record(folder, number) for number in range(120)]
    train, held_out = records[:80], records[80:]
    _plant_problems(folder, train)
    _plant_leaks(folder, train, held_out)
    name = """images/it's "quoted" & <b>.png"""
    tiny.write_image(folder / name, 60, 90)
    parts = [{"type": "text", "text": "literal <image> and "}, {"type": "image", "image": name}]
    question = [*parts, {"type": "text", "text": HOSTILE}]
    train[60] = {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": f"no {HOSTILE}"}]}
    for file, content in (("train.json", train), ("val.json", held_out)):
        (folder / file).write_text(json.dumps(content), encoding="utf-8")
    data = {"eval": [{"path": str(folder / "val.json")}], "sample_image_tokens": 26, "on_error": "skip"}
    run = tiny.write_run(folder, model, folder / "train.json", data=data)
    return Inspected(run, train, held_out)


def _record(folder: Path, number: int) -> dict[str, Any]:
    """A record of its own images and texts."""
    images = []
    for place in range(1 + number % 3):
        path = folder / "images" / f"{number}-{place}.{'jpg' if place % 2 else 'png'}"
        tiny.write_image(path, 50 + number, 60 + 7 * place + number % 11, seed=number * 10 + place)
        images.append(str(path.relative_to(folder)))
    question = f"Number {number}: " + "<image>" * len(images)
    return tiny.record(images, question, f"answer {number * 7919}", task=f"task-{number % 4}")


def _plant_problems(folder: Path, train: list[dict[str, Any]]) -> None:
    for number in (3, 13, 23):
        train[number]["images"][0] = f"images/gone-{number}.png"
    for number in (4, 14):
        train[number]["conversations"][0]["value"] += " <image>"
    train[5]["conversations"][1]["value"] = "  "
    (folder / train[6]["images"][0]).write_bytes(b"this is no image")


def _plant_leaks(folder: Path, train: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> None:
    def copied(name: str, number: int) -> str:
        target = f"images/copy-{number}{Path(name).suffix}"
        shutil.copyfile(folder / name, folder / target)
        return target

    held_out[0] = dict(train[30])  # word by word
    held_out[1] = train[31] | {"images": [copied(name, 10 + k) for k, name in enumerate(train[31]["images"])]}
    for number in (2, 3):
        source = train[30 + number]["images"]
        held_out[number] = tiny.record(source, "<image>" * len(source) + f"Another {number}", f"other {number}")
    for number in (4, 5, 6):  # numbers whose records have another image besides
        own = held_out[number]["images"]
        name = train[34 + number]["images"][0]
        images = [copied(name, 20 + number), *own]
        held_out[number] = tiny.record(images, "<image>" * len(images) + f"Shared {number}", f"shared {number}")
    held_out[7] = held_out[7] | {"conversations": train[45]["conversations"]}
    held_out[7]["images"] = [f"images/own-{k}.png" for k in range(len(train[45]["images"]))]
    for k, name in enumerate(held_out[7]["images"]):
        tiny.write_image(folder / name, 70, 80, seed=9000 + k)
    train[70] = dict(train[50])
    own = train[71]["images"]
    train[71] = tiny.record([train[51]["images"][0], *own], "<image>" * (1 + len(own)) + "Twice", "twice")
