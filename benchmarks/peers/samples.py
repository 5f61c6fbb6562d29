"""The same samples for every tool, each in the shape that the tool takes without converting, in the same order.

Triptych shuffles by its plan, which needs nothing but the number of samples and the seed. The others get the records as
that plan takes them, and are told not to shuffle, so that step k holds the same four samples everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from triptych.planning.plan import BatchSpec, Lengths, make_plan
from workload import write_pool, write_records

POOL = 400
SEED = 42
SAMPLES_PER_STEP = 4
MARK = "<image>"
ROLES = {"human": "user", "gpt": "assistant"}
TOOLS = ("llamafactory", "trl", "swift", "triptych")
Record = dict[str, Any]


def write_data(work: Path, samples: int, files: int) -> dict[str, Path]:
    """The file of each tool over the first ``files`` images of the pool in ``work/images``; what is there is kept.

    Args:
        work: folder of the comparison.
        samples: records of an epoch.
        files: images that they are drawn from.
    """
    folder = work / "data" / f"{samples}-over-{files}"
    paths = {tool: folder / f"{tool}.jsonl" for tool in TOOLS}
    if (folder / "done").exists():
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"images/{number:06d}.jpg" for number in range(POOL)]
    if not (work / names[-1]).exists():
        write_pool(work / "images", POOL)
    write_records(paths["triptych"], samples, names[:files])
    lines = paths["triptych"].read_text(encoding="utf-8").splitlines()
    order = planned_order(samples)
    shapes: dict[str, Callable[[Record], Record]] = {
        "llamafactory": lambda record: record,
        "trl": lambda record: {"messages": _with_parts(record), "images": _absolute(record, work)},
        "swift": lambda record: {"messages": _with_marks(record), "images": _absolute(record, work)},
    }
    for tool, shape in shapes.items():
        with paths[tool].open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(shape(json.loads(lines[index]))) + "\n" for index in order)
    (folder / "done").touch()
    return paths


def planned_order(samples: int) -> list[int]:
    """Indices of the samples in the order in which Triptych's rows of four take them."""
    unknown = np.zeros(samples, np.int64)  # lengths play no part in rows of a fixed number of samples
    plan = make_plan(Lengths(unknown, unknown), BatchSpec(samples=SAMPLES_PER_STEP), epochs=1, seed=SEED)
    order: list[int] = plan.samples.tolist()
    return order


def _absolute(record: Record, work: Path) -> list[str]:
    return [str(work / image) for image in record["images"]]


def _with_marks(record: Record) -> list[Record]:
    return [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in record["conversations"]]


def _with_parts(record: Record) -> list[Record]:
    return [{**message, "content": list(_parts(message["content"]))} for message in _with_marks(record)]


def _parts(text: str) -> Iterator[Record]:
    for number, piece in enumerate(text.split(MARK)):
        if number:
            yield {"type": "image", "text": ""}
        if piece:
            yield {"type": "text", "text": piece}
