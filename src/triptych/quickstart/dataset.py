"""Writes the quickstart's data: images of handwritten digits, and conversations about several of them."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from triptych.quickstart.scans import Scan, split_scans, write_image
from triptych.quickstart.tasks import BASE_TASKS, LANGUAGES, TASKS, TRAIN_TASKS, Album, Sample, Task, name

IMAGES_PER_SCAN = 4
IMAGES_PER_SCAN_BASE = 16


@dataclass(frozen=True, slots=True)
class DatasetFiles:
    """What was written: two data files, whose image paths are relative to `folder`."""

    folder: Path
    train: Path
    test: Path


def write_dataset(
    out: Path, *, train_samples: int, test_samples: int, seed: int, on_scan: Callable[[int], None] = lambda _: None
) -> DatasetFiles:
    """The four tasks with several images in two languages, some naming of single ones among the training samples.

    ``on_scan`` is called with 1 after every scan whose images are written, for a progress bar.
    """
    parts = {"train": (TRAIN_TASKS, train_samples), "test": (TASKS, test_samples)}
    return _write(out, parts, IMAGES_PER_SCAN, seed, on_scan)


def write_base_dataset(out: Path, *, train_samples: int, test_samples: int, seed: int) -> DatasetFiles:
    """What the tiny base model is trained on, one image or none, and tested on: naming the digit of one image."""
    parts = {"train": (BASE_TASKS, train_samples), "test": ((name,), test_samples)}
    return _write(out, parts, IMAGES_PER_SCAN_BASE, seed)


def _write(
    out: Path,
    parts: Mapping[str, tuple[tuple[Task, ...], int]],
    views: int,
    seed: int,
    on_scan: Callable[[int], None] = lambda _: None,
) -> DatasetFiles:
    """Training and test data share no scan, so the test asks about handwriting never seen before.

    ``parts`` holds the tasks and the number of samples of ``train`` and ``test``.
    """
    for (part, (tasks, count)), scans in zip(parts.items(), split_scans(), strict=True):
        rng = Random(f"{seed} {part}")
        album = _write_album(out / "images" / part, scans if count else [], views, rng, on_scan)
        samples = [tasks[i % len(tasks)](album, LANGUAGES[i // len(tasks) % 2], rng) for i in range(count)]
        records = [_record(f"{part}-{i}", sample, out) for i, sample in enumerate(samples)]
        write_json_lines(out / f"{part}.json", records)
    return DatasetFiles(out, out / "train.json", out / "test.json")


def _write_album(folder: Path, scans: Iterable[Scan], views: int, rng: Random, on_scan: Callable[[int], None]) -> Album:
    folder.mkdir(parents=True, exist_ok=True)
    files: list[tuple[Scan, list[Path]]] = []
    for scan in scans:
        paths = [folder / f"{scan.number:04}_{view}" for view in range(views)]
        files.append((scan, [write_image(scan, path, rng) for path in paths]))
        on_scan(1)
    return Album(files)


def _record(identity: str, sample: Sample, root: Path) -> dict[str, object]:
    turns = [
        {"from": speaker, "value": text}
        for question, answer in sample.turns
        for speaker, text in (("human", question), ("gpt", answer))
    ]
    images = [image.path.relative_to(root).as_posix() for image in sample.images]
    return {"id": identity, "task": sample.task, "conversations": turns, "images": images}


def write_json_lines(path: Path, records: list[dict[str, object]]) -> None:
    """A JSON array with one record per line, so that a record's number is near its line number."""
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
