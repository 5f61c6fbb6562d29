"""Where the paths of a run file start from: its own folder, whatever the current one is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from triptych.errors import ConfigError
from triptych.sources import storage

PLACED = ("train", "eval")
"""Lists of sources in the group ``data``."""


def from_folder(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The content of a run file in ``folder``, its paths as seen from the current folder.

    Values of other types than paths have are left as they are, for the settings to refuse.

    Raises:
        ConfigError: for a data file or image folder that there is in the current folder only.
    """
    here = str(folder)

    def place(path: str) -> str:
        path = os.path.expanduser(path)
        return path if here in ("", ".") or storage.is_remote(path) else os.path.join(here, path)

    def place_data(path: str) -> str:
        placed = place(path)
        if placed != path and not storage.is_remote(path) and not storage.matching(placed) and storage.matching(path):
            raise ConfigError(
                f"no {placed!r}: relative paths in a run file start from its folder, {here!r}; the current folder "
                f"holds {path!r}: write {os.path.relpath(path, here)!r} there"
            )
        return placed

    return _placed(content, place, place_data)


def absolute(content: dict[str, Any]) -> dict[str, Any]:
    """Settings whose paths mean the same from every folder."""
    return _placed(content, storage.absolute, storage.absolute)


def _placed(content: dict[str, Any], place: Callable[[str], str], place_data: Callable[[str], str]) -> dict[str, Any]:
    """``content`` with ``place`` applied to the paths of data, images, output, and of a model that is a folder."""
    result = dict(content)
    if isinstance(result.get("output"), str):
        result["output"] = place(result["output"])
    model = result.get("model")
    if isinstance(model, dict) and isinstance(model.get("path"), str):
        folder = place(model["path"])
        # A name on the hub looks like a relative path, too.
        if os.path.isdir(folder) or model["path"].startswith((".", "~")):
            result["model"] = {**model, "path": folder}
    data = result.get("data")
    if isinstance(data, dict):
        splits = {
            split: [_source(source, place_data) for source in data[split]]
            for split in PLACED
            if isinstance(data.get(split), list)
        }
        result["data"] = {**data, **splits}
    return result


def _source(source: Any, place: Callable[[str], str]) -> Any:
    if not isinstance(source, dict):
        return source
    result = dict(source)
    path = source.get("path")
    if isinstance(path, str):
        result["path"] = place(path)
    elif isinstance(path, list):
        result["path"] = [place(item) if isinstance(item, str) else item for item in path]
    if isinstance(source.get("media_dir"), str):
        result["media_dir"] = place(source["media_dir"])
    return result
