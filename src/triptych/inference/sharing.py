"""Share samples among the ranks of a launcher, and bring their answers together."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

LONGEST_WAIT = timedelta(hours=12)
"""For the ranks whose samples take longest."""
Found = TypeVar("Found")


def world_size() -> int:
    """Ranks that a launcher has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def share() -> slice:
    """This rank's part of a list: every w-th one, so that neighbours of similar length are spread over ranks."""
    return slice(int(os.environ.get("RANK", "0")), None, world_size())


def gathered(found: dict[int, Found]) -> dict[int, Found]:
    """What all ranks have found, on each of them."""
    if world_size() == 1:
        return found
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=LONGEST_WAIT)
    parts: list[dict[int, Found]] = [{} for _ in range(world_size())]
    # Over the CPU: answers are Python objects, and a group made for GPUs would copy them there.
    group = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
    dist.all_gather_object(parts, found, group=group)
    return {index: value for part in parts for index, value in part.items()}
