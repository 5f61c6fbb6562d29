"""``triptych env`` and ``triptych cache``: what a bug report needs, and what the cache folder holds."""

from __future__ import annotations

import platform
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from triptych.images.cache_files import cache_folder
from triptych.run.versions import NOT_INSTALLED, installed, needed, untried_line
from triptych.terminal import Terminal

NAMED = ("bitsandbytes", "flash-attn", "deepspeed", "ray", "datasets")
"""Packages that are not needed, and that change what a run does where they are installed."""

KINDS = {
    "index": "tokenized texts",
    "corpora": "lengths of samples",
    "features": "vision features",
    "records": "data from Python",
}
"""Folders of the cache. Each entry in one is used, and removed, as a whole."""
DAY = 24 * 3600


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or folder that is used as a whole."""

    path: Path
    bytes: int
    used: float
    """When it was last used, seconds since the epoch"""


def cache(*, prune: int | None = None) -> None:
    """Print how much each kind of file takes; with ``prune``, remove what was not used for so many days first.

    The measured sizes of image files stay: they are small, and serve every run.
    """
    out = Terminal()
    folder = cache_folder()
    if prune is not None:
        old = [entry for kind in KINDS for entry in entries(folder / kind) if entry.used < time.time() - prune * DAY]
        for entry in old:
            _remove(entry.path)
        freed = sum(entry.bytes for entry in old)
        out.line(f"removed {len(old):,} entries not used for {prune} days, {freed / 1e6:,.1f} MB")
    rows = []
    for kind, meaning in KINDS.items():
        found = list(entries(folder / kind))
        last = max((entry.used for entry in found), default=None)
        rows.append((kind, meaning, f"{len(found):,}", _megabytes(found), _ago(last)))
    headers = [entry for entry in entries(folder) if entry.path.name.startswith("headers-")]
    rows.append(("headers", "sizes of images", f"{len(headers):,}", _megabytes(headers), ""))
    out.table(f"Cache in {folder}", ("kind", "holds", "entries", "MB", "last used"), rows)


def entries(folder: Path) -> Iterator[Entry]:
    """What lies in a folder of the cache; locks and the folders of other kinds are left out."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.suffix == ".lock" or (path.is_dir() and path.name in KINDS):
            continue
        try:
            stats = [file.stat() for file in ([path] if path.is_file() else path.rglob("*"))]
        except OSError:  # removed meanwhile
            continue
        yield Entry(path, sum(stat.st_size for stat in stats), max((stat.st_mtime for stat in stats), default=0))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _megabytes(found: list[Entry]) -> str:
    return f"{sum(entry.bytes for entry in found) / 1e6:,.1f}"


def _ago(moment: float | None) -> str:
    if moment is None:
        return ""
    days = int((time.time() - moment) / DAY)
    return "today" if days < 1 else f"{days} days ago"


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
