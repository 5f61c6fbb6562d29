"""Lists of data sets of InternVL, Qwen's scripts and LLaVA: each entry as the settings of a source.

InternVL    {"name": {"root": "images", "annotation": "a.jsonl", "repeat_time": 2}}
Qwen        {"name": {"annotation_path": "a.json", "data_path": "images", "sampling_rate": 0.5}}
LLaVA       datasets: [{json_path: a.json, sampling_strategy: "first:1000"}]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triptych.errors import ConfigError

FILES = ("annotation", "annotation_path", "json_path")
"""Keys of an entry that name its file, by which the three are told apart."""
FOLDERS = ("root", "data_path")


def entry_source(entry: Mapping[str, Any], where: str, folder: str) -> dict[str, Any]:
    """The source of an entry; its paths start from ``folder`` unless they are absolute.

    Raises:
        ConfigError: if it cannot be one.
    """
    key = next(name for name in FILES if name in entry)
    source: dict[str, Any] = {"path": _placed(entry[key], folder, f"{where}: `{key}`")}
    media = next((name for name in FOLDERS if entry.get(name)), None)
    if media is not None:
        source["media_dir"] = _placed(entry[media], folder, f"{where}: `{media}`")
    for name in ("repeat_time", "sampling_rate"):
        times = entry.get(name, 1)
        if isinstance(times, bool) or not isinstance(times, int | float) or times <= 0:
            raise ConfigError(f"{where}: `{name}` is how often the data set is taken, this is {times!r}")
        if times != 1:
            source["epochs"] = times
    return source | _sampling(entry.get("sampling_strategy", "all"), where)


def _placed(value: Any, folder: str, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{what} is a path, this is {value!r}")
    if "://" in value or Path(value).is_absolute() or folder in ("", "."):
        return value
    return f"{folder.rstrip('/')}/{value}"


def _sampling(strategy: Any, where: str) -> dict[str, Any]:
    """LLaVA's ``all``, ``first:N`` and ``random:N``; shares and ends of a file have no setting."""
    kind, _, number = str(strategy).partition(":")
    if kind == "all" and not number:
        return {}
    if kind in ("first", "random") and number.isdecimal() and int(number):
        return {"first" if kind == "first" else "max_samples": int(number)}
    if kind == "random" and number.endswith("%") and number[:-1].isdecimal() and int(number[:-1]):
        return {"epochs": int(number[:-1]) / 100}
    raise ConfigError(
        f"{where}: `sampling_strategy` is {strategy!r}; it can be all, first:N, random:N or random:N% here"
    )
