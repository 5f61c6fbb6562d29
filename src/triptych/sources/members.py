"""Images inside containers: how a location names one.

A location is ``member:`` and a JSON list: ``["tar", path, offset, size, name]`` or ``["table", path, group, row,
column, place]``, where the place of an image deep inside is a list. No path of a data set can be mistaken for one:
those are made absolute first.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import orjson

from triptych.sources import storage

PREFIX = "member:"


def name(kind: Literal["tar", "table"], path: str, *place: int | str | list[Any]) -> str:
    """The location of one member of the container ``path``."""
    return PREFIX + orjson.dumps([kind, storage.absolute(path), *place]).decode()


def container(location: str) -> str:
    """The file that holds a member."""
    return cast(str, orjson.loads(location.removeprefix(PREFIX))[1])


def shown(location: str) -> str:
    """How messages name a member."""
    kind, path, *place = orjson.loads(location.removeprefix(PREFIX))
    return f"{path}:{place[-1]}" if kind == "tar" else f"{path} ({place[2]} of row {place[1] + 1} in group {place[0]})"
