"""``{info: FILE, name: NAME}`` in a run file: the sources that a list of data sets holds under these names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from triptych.errors import ConfigError
from triptych.sources import storage
from triptych.sources.lists import dataset_info, weighted_lists

MAX_BYTES = 1 << 22
"""Of a list of data sets; LLaMA-Factory's own has some thousands."""


def expand(sources: list[Any]) -> list[Any]:
    """``sources`` with every entry of a list in the place of what names it; settings beside a name win.

    Raises:
        ConfigError: if a list cannot be read, or has no entry of a name.
    """
    found: list[Any] = []
    for source in sources:
        if not isinstance(source, Mapping) or not {"info", "name"} & source.keys():
            found.append(source)
            continue
        own = {key: value for key, value in source.items() if key not in ("info", "name")}
        found += [entry | own for entry in _entries(source)]
    return found


def _entries(source: Mapping[str, Any]) -> list[dict[str, Any]]:
    place, wanted = source.get("info"), source.get("name")
    if not isinstance(place, str):
        raise ConfigError("`name` of a source goes with `info`, the file that lists data sets: {info: F, name: N}")
    if "path" in source:
        raise ConfigError(f"a source has either `path` or `info`, this one has both: {place}")
    names = [wanted] if isinstance(wanted, str) else wanted
    if names is not None and not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise ConfigError(f"{place}: `name` is the name of a data set, or a list of names")
    entries = read_entries(place)
    folder = storage.parent(place)
    if any(isinstance(entry, Mapping) and set(weighted_lists.FILES) & entry.keys() for entry in entries.values()):
        return _weighted(entries, names, place, folder)
    if names is None:
        raise ConfigError(f"{place}: say which data set with `name`; it has {', '.join(list(entries)[:20])}")
    media = source.get("media_dir", folder or ".")
    return [{"media_dir": media} | dataset_info.entry_source(entries, name, place).source for name in names]


def _weighted(entries: Mapping[str, Any], names: list[str] | None, place: str, folder: str) -> list[dict[str, Any]]:
    for name in names or ():
        if name not in entries:
            raise ConfigError(f"{place} has no data set {name!r}; it has {', '.join(list(entries)[:20])}")
    chosen = names if names is not None else list(entries)
    for name in chosen:
        if not isinstance(entries[name], Mapping) or not set(weighted_lists.FILES) & entries[name].keys():
            raise ConfigError(f"{place}, data set {name!r}: it names no file ({', '.join(weighted_lists.FILES)})")
    return [weighted_lists.entry_source(entries[name], f"{place}, data set {name!r}", folder) for name in chosen]


def read_entries(place: str) -> dict[str, Any]:
    """The content of a list: JSON, or YAML for one of LLaVA's; entries without a name are numbered from 1.

    Raises:
        ConfigError: if it cannot be read, or is no such list.
    """
    try:
        with open(place, "rb") as file:
            text = file.read(MAX_BYTES + 1)
        content = yaml.safe_load(text.decode("utf-8-sig")) if len(text) <= MAX_BYTES else None
    except OSError as error:
        raise ConfigError(f"cannot read the list of data sets {place}: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{place} is neither valid JSON nor YAML: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("datasets"), list):
        content = {str(number): entry for number, entry in enumerate(content["datasets"], 1)}
    if not isinstance(content, dict):
        raise ConfigError(f"{place} is no list of data sets: it is an object with an entry for each of them")
    return {str(name): entry for name, entry in content.items()}
