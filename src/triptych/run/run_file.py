"""The run file: settings from YAML and ``key=value`` overrides, and back to YAML beside the checkpoint."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from triptych.errors import ConfigError
from triptych.run.settings import RunSettings
from triptych.run.settings.errors import explain
from triptych.sources import storage
from triptych.sources.lists.entries import expand

PLACED = ("train", "eval")
"""Lists of sources in the group ``data``."""
SCHEMA = "run.schema.json"
"""The JSON Schema that is written beside a run file, for editors."""

MAX_BYTES = 1 << 20
"""Of a run file; those of people are under a hundredth."""
MAX_VALUES = 100_000
"""Of a run file."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunSettings:
    """Read a native run file and apply ``key=value`` overrides such as ``train.epochs=3``.

    Relative paths in the file start from its folder; those of overrides from the current one, as on any command line.

    Raises:
        ConfigError: naming the file, the key and, for an unknown key, the nearest known one.
    """
    content = read(path)
    return _validated(_from_folder(content, Path(path).parent), overrides, str(path))


def read(path: str | Path) -> dict[str, Any]:
    """What a YAML file of settings holds, as it stands there.

    Raises:
        ConfigError: if it cannot be read, or holds no settings.
    """
    try:
        with Path(path).open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ConfigError(f"{path} is over {MAX_BYTES:,} bytes: that is no run file")
        content = parsed(text.decode())
    except OSError as error:
        raise ConfigError(f"cannot read the run file {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or a date that is none
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not a run file: it holds no settings")
    return content


def parsed(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        yaml.YAMLError: if it is no YAML, or its aliases stand for more than ``MAX_VALUES``.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """Values that a node stands for once its aliases are written out: nine lines can stand for a billion."""
    if node not in known:
        known[node] = MAX_VALUES  # of one that holds itself
        value = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for item in value for part in (item if isinstance(item, tuple) else (item,))]
        known[node] = 1 + sum(_count(part, known) for part in parts)
    if known[node] >= MAX_VALUES:
        raise yaml.YAMLError(f"its aliases stand for over {MAX_VALUES:,} values, or for themselves")
    return known[node]


def from_mapping(content: Mapping[str, Any], overrides: Sequence[str] = (), name: str = "settings") -> RunSettings:
    """Settings in memory, as a run file would hold them; ``name`` is what messages call them.

    Raises:
        ConfigError: naming the key and, for an unknown key, the nearest known one.
    """
    return _validated(copy.deepcopy(dict(content)), overrides, name)


def _validated(content: dict[str, Any], overrides: Sequence[str], name: str) -> RunSettings:
    for setting in overrides:
        override(content, setting)
    try:
        return RunSettings.model_validate(_with_listed_data(content))
    except ValidationError as error:
        raise ConfigError("\n".join(f"{name}: {line}" for line in explain(error, RunSettings))) from error


def _with_listed_data(content: dict[str, Any]) -> dict[str, Any]:
    """Settings whose sources are all spelt out: those of lists of data sets, ``{info: FILE, name: NAME}``, too."""
    data = content.get("data")
    if not isinstance(data, dict):
        return content
    lists = {split: expand(data[split]) for split in PLACED if isinstance(data.get(split), list)}
    return {**content, "data": {**data, **lists}}


def to_yaml(settings: RunSettings) -> str:
    """The resolved run file: every setting, readable again by ``load`` from any folder, so its paths are absolute."""
    return dumped(absolute_paths(settings.model_dump(mode="json")))


def dumped(content: Mapping[str, Any]) -> str:
    """Settings as YAML that reads back the same."""
    return yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """YAML whose ``1e-4`` is a number, as every user means it (YAML 1.1 reads a string without the dot)."""


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that ``_Loader`` would take for numbers."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )


def override(content: dict[str, Any], setting: str) -> None:
    """Set ``key=value`` in the content of a run file.

    Raises:
        ConfigError: if it is no override, or there is nothing at its key.
    """
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise ConfigError(f"{setting!r} is not an override; write key=value, for example train.epochs=3")
    try:
        value = parsed(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"override {setting!r}: the value is not valid YAML") from error
    *groups, last = key.split(".")
    target: Any = content
    for name in groups:
        if isinstance(target, list) and name.isdecimal() and int(name) < len(target):
            target = target[int(name)]
        elif isinstance(target, dict):
            target = target.setdefault(name, {})
        else:
            raise ConfigError(f"override {setting!r}: there is nothing at {name!r}")
    if isinstance(target, list) and last.isdecimal() and int(last) < len(target):
        target[int(last)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise ConfigError(f"override {setting!r}: {last!r} cannot be set there")


def _from_folder(content: dict[str, Any], folder: Path) -> dict[str, Any]:
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


def absolute_paths(content: dict[str, Any]) -> dict[str, Any]:
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
    if isinstance(model, dict) and isinstance(model.get("adapter"), str):
        result["model"] = {**result["model"], "adapter": place(model["adapter"])}
    data = result.get("data")
    if isinstance(data, dict):
        splits = {
            split: [_source(source, place_data) for source in data[split]]
            for split in PLACED
            if isinstance(data.get(split), list)
        }
        result["data"] = {**data, **splits}
    scorers = result["eval"].get("scorers") if isinstance(result.get("eval"), dict) else None
    if isinstance(scorers, (list, dict)):
        result["eval"] = {**result["eval"], "scorers": _scorers(scorers, place)}
    return result


def _scorers(scorers: list[Any] | dict[str, Any], place: Callable[[str], str]) -> Any:
    """Scorers whose Python files, ``file.py:function``, are at their place."""
    if isinstance(scorers, dict):
        return {task: _scorers(names, place) if isinstance(names, list) else names for task, names in scorers.items()}
    own = [isinstance(name, str) and name.rpartition(":")[0].endswith(".py") for name in scorers]
    return [place(name) if is_own else name for name, is_own in zip(scorers, own, strict=True)]


def _source(source: Any, place: Callable[[str], str]) -> Any:
    if not isinstance(source, dict):
        return source
    result = dict(source)
    if isinstance(source.get("info"), str):
        result["info"] = place(source["info"])
    path = source.get("path")
    if isinstance(path, str):
        result["path"] = place(path)
    elif isinstance(path, list):
        result["path"] = [place(item) if isinstance(item, str) else item for item in path]
    if isinstance(source.get("media_dir"), str):
        result["media_dir"] = place(source["media_dir"])
    return result
