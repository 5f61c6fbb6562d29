"""``triptych env``: what a bug report needs; also whether a package lies outside the range that was tried."""

from __future__ import annotations

import platform
import sys

from triptych.images.cache_files import cache_folder
from triptych.run.versions import NOT_INSTALLED, installed, needed, untried_line

NAMED = ("bitsandbytes", "flash-attn", "deepspeed", "ray", "datasets")
"""Packages that are not needed, and that change what a run does where they are installed."""


def report() -> list[str]:
    """Lines of name and value: Triptych, Python, system, device, every package it needs, cache folder."""
    lines = [f"triptych {installed('triptych')}", f"python {sys.version.split()[0]}", platform.platform(), _device()]
    lines += [f"{package.name} {installed(package.name)}" for package in needed()]
    lines += [f"{name} {installed(name)}" for name in NAMED if installed(name) != NOT_INSTALLED]
    lines.append(f"cache folder {cache_folder()}")
    line = untried_line()
    return lines if line is None else [*lines, line]


def _device() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"device CPU, {torch.get_num_threads()} threads"
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return f"device {', '.join(names)}; CUDA {torch.version.cuda}"
