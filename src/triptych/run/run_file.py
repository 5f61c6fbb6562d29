"""The run file: settings from YAML and ``key=value`` overrides, and back to YAML beside the checkpoint."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from triptych.errors import ConfigError
from triptych.run import run_paths
from triptych.run.setting_errors import explain
from triptych.run.settings import RunSettings

SCHEMA = "run.schema.json"
"""The JSON Schema that is written beside a run file, for editors."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunSettings:
    """Read a run file and apply ``key=value`` overrides such as ``train.epochs=3``.

    Relative paths in the file start from its folder; those of overrides from the current one, as on any command line.

    Raises:
        ConfigError: naming the file, the key and, for an unknown key, the nearest known one.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(f"cannot read the run file {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or a date that is none
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not a run file: it holds no settings")
    return _validated(run_paths.from_folder(content, Path(path).parent), overrides, str(path))


def from_mapping(content: Mapping[str, Any], overrides: Sequence[str] = ()) -> RunSettings:
    """Settings in memory, as a run file would hold them.

    Raises:
        ConfigError: naming the key and, for an unknown key, the nearest known one.
    """
    return _validated(copy.deepcopy(dict(content)), overrides, "settings")


def _validated(content: dict[str, Any], overrides: Sequence[str], name: str) -> RunSettings:
    for override in overrides:
        _override(content, override)
    try:
        return RunSettings.model_validate(content)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{name}: {line}" for line in explain(error, RunSettings))) from error


def to_yaml(settings: RunSettings) -> str:
    """The resolved run file: every setting, readable again by ``load`` from any folder, so its paths are absolute."""
    return yaml.dump(
        run_paths.absolute(settings.model_dump(mode="json")), Dumper=_Dumper, sort_keys=False, allow_unicode=True
    )


class _Loader(yaml.SafeLoader):
    """YAML whose ``1e-4`` is a number, as every user means it (YAML 1.1 reads a string without the dot)."""


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that ``_Loader`` would take for numbers."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is not an override; write key=value, for example train.epochs=3")
    try:
        value = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from error
    *groups, last = key.split(".")
    target: Any = content
    for name in groups:
        if isinstance(target, list) and name.isdecimal() and int(name) < len(target):
            target = target[int(name)]
        elif isinstance(target, dict):
            target = target.setdefault(name, {})
        else:
            raise ConfigError(f"override {override!r}: there is nothing at {name!r}")
    if isinstance(target, list) and last.isdecimal() and int(last) < len(target):
        target[int(last)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise ConfigError(f"override {override!r}: {last!r} cannot be set there")
