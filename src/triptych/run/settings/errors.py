"""What pydantic finds wrong in a run file, in the words of a user."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from triptych.run.settings.synonyms import meant


def explain(error: ValidationError, settings: type[BaseModel]) -> Iterator[str]:
    """One line per defect of a run file, its key first; an unknown key comes with the nearest known one."""
    for item in error.errors(include_url=False):
        *groups, last = item["loc"] or ("",)
        where = [str(part) for part in groups if not _names_type(part)]
        if item["type"] in ("extra_forbidden", "missing") or not _names_type(last):
            where.append(str(last))
        key = ".".join(where)
        if item["type"] == "extra_forbidden":
            yield f"unknown setting `{key}`{_suggestion(where, settings)}"
        elif item["type"] == "missing":
            yield f"`{key}` is missing"
        else:
            found = _found(item["input"])
            message = item["msg"].removeprefix("Value error, ")
            yield f"`{key}`: {message}" + (f" (found {found})" if 0 < len(found) < 60 else "") if key else message


def _suggestion(where: Sequence[str], settings: type[BaseModel]) -> str:
    """The known name that is nearest, in the same group, or in another one, or by its meaning."""
    here = _keys(settings, where[:-1])
    near = difflib.get_close_matches(where[-1], here, n=1, cutoff=0.85)
    elsewhere = None if near else meant(where[-1], settings)
    if elsewhere is not None:
        return f"; its name here is `{elsewhere}`"
    near = difflib.get_close_matches(where[-1], here, n=1, cutoff=0.5)
    return f"; did you mean `{near[0]}`?" if near else ""


def _found(value: Any) -> str:
    """A value in a message; nothing for one that JSON cannot write (YAML can hold itself)."""
    try:
        return json.dumps(value, default=str, ensure_ascii=False)
    except (TypeError, ValueError):
        return ""


def _names_type(part: str | int) -> bool:
    """Whether this part of an error's place is the type that pydantic tried, where a setting takes several."""
    return part in ("str", "int", "[key]") or str(part).startswith(("literal[", "list[", "dict[", "constrained-"))


def _keys(settings: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Known keys of the group of settings at ``path``."""
    group = settings
    for name in path:
        if name.isdigit():
            continue
        field = group.model_fields.get(name)
        candidates = [] if field is None else [field.annotation, *get_args(field.annotation)]
        found = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not found:
            return []
        group = found[0]
    return list(group.model_fields)
