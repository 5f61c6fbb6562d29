"""Conditions that hold whenever an address is opened, carried by the address itself to whatever process opens it.

    /data/a.jpg                                        no condition
    guarded:["/data/a.jpg", "/data", 0]                only as long as it lies in /data
    guarded:["http://10.0.0.5/a.jpg", null, 1]         its own host may have a private address

A location with conditions is ``guarded:`` and a JSON list; no path of a data set can be mistaken for one, since those
are made absolute first.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from enum import IntEnum
from urllib.parse import unquote, urlsplit

import orjson

PREFIX = "guarded:"


class Private(IntEnum):
    """Which addresses of this machine and of private networks may be read."""

    NONE = 0
    OWN_HOST = 1
    """That of the address itself: the user named it as a place of the data"""
    ALL = 2


@dataclass(frozen=True, slots=True)
class Guard:
    """What must hold when an address is opened."""

    root: str | None = None
    """Folder or URL that it must lie in; None for anywhere."""
    private: Private = Private.NONE


class OutsideError(OSError):
    """An address leads out of the folder that it must lie in."""


def name(path: str, guard: Guard) -> str:
    """The location of ``path`` under conditions; itself if there are none."""
    if guard == Guard():
        return path
    return PREFIX + orjson.dumps([path, guard.root, guard.private]).decode()


def parse(location: str) -> tuple[str, Guard]:
    """The path or URL of a location, and its conditions."""
    if not location.startswith(PREFIX):
        return location, Guard()
    path, root, private = orjson.loads(location.removeprefix(PREFIX))
    return path, Guard(root, Private(private))


def path_of(location: str) -> str:
    """The path or URL of a location."""
    return parse(location)[0]


def in_folder(url: str, root: str) -> bool:
    """Whether a URL lies below the URL of a folder, however it is escaped."""
    one, other = urlsplit(url), urlsplit(root)
    if (one.scheme, one.netloc) != (other.scheme, other.netloc):
        return False
    path = unquote(one.path).replace("\\", "/")
    return ".." not in path.split("/") and path.startswith(posixpath.join(unquote(other.path), ""))


def same_host(url: str, other: str) -> bool:
    """Whether two URLs are of one host and port."""
    return urlsplit(url).netloc.rpartition("@")[2].lower() == urlsplit(other).netloc.rpartition("@")[2].lower()
