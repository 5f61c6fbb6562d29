"""Values of a run file as OmegaConf would read them: ``${oc.env:X}``, ``${other.key}``, and ``key=value`` overrides."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from triptych.errors import ConfigError
from triptych.run.run_file import parsed

DEEPEST = 20
"""References that may lead to one another."""

_REFERENCE = re.compile(r"\$\{([^${}]*)\}")
_ENVIRONMENT = "oc.env:"


def with_overrides(content: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """``content`` with ``key=value`` and ``group.key=value`` set.

    Raises:
        ConfigError: for one that is no override, or sets a key of something that holds none.
    """
    result = copy.deepcopy(dict(content))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"{override!r} is not an override; write key=value, for example learning_rate=1.0e-4")
        try:
            value = parsed(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"override {override!r}: the value is not valid YAML") from error
        *groups, last = key.split(".")
        target: Any = result
        for name in groups:
            if target.get(name) is None:
                target[name] = {}
            target = target[name]
            if not isinstance(target, dict):
                raise ConfigError(f"override {override!r}: {name!r} holds no keys")
        target[last] = value
    return result


def resolved(content: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """``content`` with all references replaced.

    Args:
        content: of a run file.
        environment: variables; those of this process by default.

    Raises:
        ConfigError: naming the key, for a variable or key that is not there, or a reference of another kind.
    """
    variables = os.environ if environment is None else environment
    return {key: _resolve(value, str(key), content, variables) for key, value in content.items()}


def _resolve(value: Any, key: str, content: Mapping[str, Any], variables: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {name: _resolve(item, f"{key}.{name}", content, variables) for name, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, key, content, variables) for item in value]
    if value == "???":
        raise ConfigError(f"`{key}`: ??? stands for a value that must be given; write {key}=VALUE behind the file")
    for _ in range(DEEPEST):
        if not isinstance(value, str) or (found := _REFERENCE.search(value)) is None:
            return value
        meant = _meaning(found[1].strip(), key, content, variables)
        whole = found[0] == value.strip()
        value = meant if whole else value[: found.start()] + str(meant) + value[found.end() :]
    raise ConfigError(f"`{key}`: its references lead to one another without an end")


def _meaning(reference: str, key: str, content: Mapping[str, Any], variables: Mapping[str, str]) -> Any:
    if reference.startswith(_ENVIRONMENT):
        name, comma, default = reference.removeprefix(_ENVIRONMENT).partition(",")
        found = variables.get(name.strip())
        if found is None and not comma:
            raise ConfigError(f"`{key}`: the environment variable {name.strip()} is not set")
        return default.strip().strip("'\"") if found is None else found
    if ":" in reference:
        raise ConfigError(f"`{key}`: only ${{oc.env:NAME}} and ${{KEY}} are replaced, not ${{{reference}}}")
    target: Any = content
    for part in reference.split("."):
        if not isinstance(target, Mapping) or part not in target:
            raise ConfigError(f"`{key}`: ${{{reference}}} names a key that is not in the file")
        target = target[part]
    return target
