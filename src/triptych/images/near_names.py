"""What a path that names no file may have meant: files of nearly that name, and folders that hold such names."""

from __future__ import annotations

import os
import re
import unicodedata
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

_SEVERAL = re.compile(r"[,;|\n]\s*")
_ENDING = re.compile(r"\.(?:jpe?g|png|webp|gif|bmp|tiff?)$", re.IGNORECASE)
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
_QUOTES = "'\"`“”‘’«»"
TRIED = 20
"""Names that a folder is judged by."""
MOST_FOLDERS = 500
MOST_ENTRIES = 200_000
"""Folders and entries of folders that are looked at to find where images lie."""
DEEPEST = 3
"""Folders below, and above, a known one that are looked at."""


@dataclass(frozen=True, slots=True)
class Near:
    """A file that exists, and how the path differs from its name."""

    path: str
    difference: str


def near(path: str) -> Near | None:
    """The file that an absolute path most likely means, None if there is none."""
    for candidate, difference in _rewritten(path):
        if candidate != path and os.path.isfile(candidate):
            return Near(candidate, difference)
    for text in dict.fromkeys((path, urllib.parse.unquote(path))):
        found = _walk(text.replace("\\", "/"))
        if found is not None:
            return Near(found, _difference(path, found))
    return None


def _rewritten(path: str) -> Iterator[tuple[str, str]]:
    """Paths that other programs would take this one for."""
    if "\0" in path:
        return
    tilde = path.find("/~")
    if tilde >= 0:
        yield os.path.expanduser(path[tilde + 1 :]), "`~` is not expanded; write the home folder in full"
    dollar = path.find("/$")
    if dollar >= 0:
        yield os.path.expandvars(path[dollar + 1 :]), "variables are not expanded; write the path in full"
    yield urllib.parse.unquote(path), "the path is percent-encoded; write it decoded"
    yield urllib.parse.quote(path), "the name on disk is percent-encoded; write it so, or rename the file"
    yield path.replace("\\", "/"), "the path has backslashes; write /"
    yield path.strip(), "the path has white space at its end"
    plain = _INVISIBLE.sub("", path)
    yield plain, "the path has characters that nobody sees, such as U+200B; remove them"
    bare = "/".join(part.strip().strip(_QUOTES) for part in plain.split("/"))
    yield bare, "the path has white space or quotation marks around a name; remove them"
    yield bare.rstrip("/"), "the path ends with /; remove it"


def _difference(path: str, found: str) -> str:
    for form in ("NFC", "NFD"):
        if unicodedata.normalize(form, path) == found:
            return f"the name on disk has another Unicode form ({form}) than the path; rename the file"
    if path.casefold() == found.casefold():
        return "the name on disk has other upper and lower case"
    if path.partition("?")[0] == found or path.partition("#")[0] == found:
        return "the path has a query after the name; remove it"
    if os.path.splitext(path)[0] == os.path.splitext(found)[0]:
        return "the name on disk has another ending"
    return "the path differs in case, ending, escapes or Unicode form"


def names_several(path: str) -> bool:
    """Whether a text looks like the names of several images, written with commas or line breaks between them."""
    return len(path) < 10_000 and len([piece for piece in _SEVERAL.split(path) if _ENDING.search(piece.strip())]) > 1


def tell_tale(path: str) -> str | None:
    """What is odd about a path that no file is near, None if nothing is."""
    if re.search(r"(^|/)(?:image/\w+;)?base64,", path):
        return "base64 text needs data:image/png;base64, in front"
    if re.search(r"(^|/)b(['\"])(?:[A-Za-z0-9+/=]{20,}\2$|\\x89PNG|\\xff\\xd8|GIF8|RIFF)", path):
        return "it is Python's way to print bytes; write data:image/png;base64, and the base64 text"
    name = path.rpartition("/")[2]
    if names_several(path):
        return "it looks like several names in one text; write them as a list"
    if name.startswith("array(["):
        return "it is NumPy's way to print a list; write a list of names"
    if "/~" in path:
        return "`~` is not expanded; write the home folder in full"
    if "/$" in path:
        return "variables are not expanded; write the path in full"
    if re.search(r"(^|/)[A-Za-z]:[\\/]", path):
        return "it is a path of a Windows drive; write it as this machine names it"
    return None


def _walk(path: str) -> str | None:
    """The file that a path names when case, Unicode form, white space and, at last, the ending are left aside."""
    folder = "/" if path.startswith("/") else ""
    parts = [part for part in path.split("/") if part]
    for number, part in enumerate(parts):
        step = os.path.join(folder, part)
        if not os.path.lexists(step):
            known = _listing(folder)
            last = number == len(parts) - 1
            name = known.get(_plain(part)) or (known.get(_plain(os.path.splitext(part)[0]) + ".") if last else None)
            if name is None:
                return None
            step = os.path.join(folder, name)
        folder = step
    return folder if os.path.isfile(folder) else None


def _plain(name: str) -> str:
    return unicodedata.normalize("NFKC", name).strip().casefold()


def _listing(folder: str) -> dict[str, str]:
    try:
        return _listed(folder or ".", os.stat(folder or ".").st_mtime_ns)
    except (OSError, ValueError):
        return {}


@lru_cache(maxsize=64)
def _listed(folder: str, _changed: int) -> dict[str, str]:
    """Names of a folder by their plain form, and by the plain form of their stem with a dot after it."""
    found: dict[str, str] = {}
    for name in sorted(os.listdir(folder)):
        found.setdefault(_plain(os.path.splitext(name)[0]) + ".", name)
    for name in sorted(os.listdir(folder)):
        found[_plain(name)] = name
    return found


@dataclass(frozen=True, slots=True)
class Place:
    """A folder in which names were found."""

    folder: str
    removed: int
    """Leading folders of the names that are not there."""
    example: str
    """One of the names that was found."""


def place_of(names: Sequence[str], known: Iterable[str]) -> Place | None:
    """A folder that at least half of ``names`` start from, if there is one near the ``known`` folders.

    Args:
        names: of missing files, as the data writes them.
        known: folders to look around: the working folder, then those of the data.
    """
    tried = [_parts(name) for name in names[:TRIED]]
    tried = [parts for parts in tried if parts and not any("\0" in part for part in parts)]
    folders = list(_around(known))
    for removed in range(max(map(len, tried), default=0)):
        shown = [os.path.join(*parts[removed:]) for parts in tried if len(parts) > removed]
        if len(shown) * 2 < len(tried):
            break
        hits = {folder: sum(os.path.isfile(os.path.join(folder, name)) for name in shown) for folder in folders}
        best = max(folders, key=hits.__getitem__, default=None)
        if best is not None and hits[best] * 2 >= len(tried):
            return Place(best, removed, _example(best, removed, names))
    return None


def _example(folder: str, removed: int, names: Sequence[str]) -> str:
    """The first of the names that is found in a folder."""
    for name in names[:TRIED]:
        parts = _parts(name)
        if len(parts) > removed and os.path.isfile(os.path.join(folder, *parts[removed:])):
            return name
    return names[0]


def _parts(name: str) -> list[str]:
    return [part for part in name.replace("\\", "/").split("/") if part]


def _around(known: Iterable[str]) -> Iterator[str]:
    """The known folders and those below them, folders beside them, and those above, each once and not too many."""
    level = [os.path.abspath(folder) for folder in known]
    above = [parent for folder in level for parent in _parents(folder)]
    # Beside the data there are images; beside a working folder there are projects of others.
    level += [os.path.dirname(folder) for folder in level[1:] if len(folder.split(os.sep)) > DEEPEST]
    seen: dict[str, None] = {}
    entries = 0
    for _ in range(DEEPEST + 1):
        below: list[str] = []
        for folder in level:
            if folder in seen or len(seen) >= MOST_FOLDERS or entries >= MOST_ENTRIES:
                continue
            seen[folder] = None
            yield folder
            names, count = _folders_in(folder, MOST_ENTRIES - entries)
            entries += count
            below += names
        level = below
    yield from dict.fromkeys(folder for folder in above if folder not in seen)


def _parents(folder: str) -> list[str]:
    """Up to ``DEEPEST`` folders above one, the root not among them."""
    found: list[str] = []
    while len(found) < DEEPEST and os.path.dirname(folder) != os.path.dirname(os.path.dirname(folder)):
        folder = os.path.dirname(folder)
        found.append(folder)
    return found


def _folders_in(folder: str, most: int) -> tuple[list[str], int]:
    """(folders directly in one, sorted, entries looked at); links and hidden ones are left out."""
    below: list[str] = []
    count = 0
    try:
        with os.scandir(folder) as entries:
            for count, entry in enumerate(entries, 1):
                if count > most:
                    break
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
    except (OSError, ValueError):
        pass
    return sorted(below), count
