"""``triptych env``: what a bug report needs; also whether a package lies outside the range that was tried."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from triptych.images.cache_files import cache_folder

NAMED = ("bitsandbytes", "flash-attn", "deepspeed", "ray", "datasets")
"""Packages that are not needed, and that change what a run does where they are installed."""


def report() -> list[str]:
    """Lines of name and value: Triptych, Python, system, device, every package it needs, cache folder."""
    lines = [f"triptych {_version('triptych')}", f"python {sys.version.split()[0]}", platform.platform(), _device()]
    lines += [f"{needed.name} {_version(needed.name)}" for needed in _needed()]
    lines += [f"{name} {_version(name)}" for name in NAMED if _version(name) != "not installed"]
    lines.append(f"cache folder {cache_folder()}")
    return lines + untried()


def untried() -> list[str]:
    """A line for each installed package outside the range that the tests pass with, with the remedy."""
    found = ((needed, _version(needed.name)) for needed in _needed())
    return [
        f"{needed.name} {have} was not tried with Triptych; it wants {needed.specifier}: pip install '{needed}'"
        for needed, have in found
        if have != "not installed" and not needed.specifier.contains(have, prereleases=True)
    ]


def _needed() -> list[Requirement]:
    """What the installed package itself says that it needs, extras aside."""
    found = [Requirement(text) for text in requires("triptych") or ()]
    return [needed for needed in found if needed.marker is None]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _device() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"device CPU, {torch.get_num_threads()} threads"
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return f"device {', '.join(names)}; CUDA {torch.version.cuda}"
