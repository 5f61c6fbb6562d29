"""The values that LLaMA-Factory would train with: its defaults, and over them what a file gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triptych.compat.llamafactory.checks import ContradictionError, check_known
from triptych.compat.llamafactory.keys.key import Kind
from triptych.compat.llamafactory.keys.table import KEYS

_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_EXPECTED: dict[Kind, str] = {
    "flag": "true or false",
    "whole": "a whole number",
    "number": "a number",
    "text": "a text",
    "names": "names, separated by commas",
    "any": "",
}


def fill(given: Mapping[str, Any]) -> dict[str, Any]:
    """Every key of the table with its value; ``null`` is as if the key were left out.

    Raises:
        UnknownKeyError: for keys that are not in the table.
        ContradictionError: for values of a type that their key does not have.
    """
    check_known(given)
    values: dict[str, Any] = {name: key.default for name, key in KEYS.items()}
    wrong = []
    for name, value in given.items():
        if value is None:
            continue
        kind = KEYS[name].kind
        try:
            values[name] = _typed(value, kind)
        except ValueError:
            wrong.append(f"`{name}` is {_EXPECTED[kind]}, this is {value!r}")
    if wrong:
        raise ContradictionError("\n".join(wrong))
    for name, key in KEYS.items():
        if key.kind == "names" and isinstance(values[name], str):
            values[name] = _names(values[name])
    return values


def _typed(value: Any, kind: Kind) -> Any:
    """
    Raises:
        ValueError: if it is not of that kind.
    """
    if kind == "flag":
        return value if isinstance(value, bool) else _word(value)
    if kind in ("whole", "number"):
        return _number(value, kind)
    if kind == "text":
        if isinstance(value, Mapping | list):
            raise ValueError
        # YAML 1.1 reads a bare `no` as false, and `save_strategy: no` is what people write.
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
    return _names(value) if kind == "names" else value


def _word(value: Any) -> bool:
    found = _WORDS.get(str(value).strip().lower())
    if found is None:
        raise ValueError
    return found


def _number(value: Any, kind: Kind) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    found = float(value)
    if kind == "number":
        return found
    if found != int(found):
        raise ValueError
    return int(found)


def _names(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        raise ValueError
    items = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    return [str(item).strip() for item in items if str(item).strip()]
