"""What names an image: where its bytes are, in caches too, and what tells that it changed since."""

from __future__ import annotations

import hashlib
import os
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass

import orjson

from triptych.errors import Code
from triptych.images.headers import first_bytes
from triptych.images.headers.first_bytes import INLINE
from triptych.sources import members, storage, tars
from triptych.sources.access import beneath, guarded
from triptych.sources.access.guarded import Guard, Private
from triptych.sources.records import ImageRef, Source
from triptych.sources.storage import Stamp

REFUSED = "refused:"


@dataclass(frozen=True, slots=True)
class Rules:
    """Which images the records of a source may name."""

    confine: bool = False
    """Only those in the media folder."""
    allow_remote: bool = False
    """Also URLs."""
    allow_private: bool = False
    """Also URLs of this machine and of private networks; those of the media folder's own host are always read."""

    @classmethod
    def of(cls, source: Source) -> Rules:
        """Those of a source."""
        return cls(source.confine, source.allow_remote, source.allow_private)


def locate(ref: ImageRef, media_root: str, rules: Rules) -> str:
    """Where the bytes of ``ref`` are, in the form that ``open_bytes`` takes: the same from every working folder.

    An absolute path, a URL, a data URI, ``member:`` of a container, or ``guarded:`` with conditions that hold whenever
    it is opened. An address that may not be read becomes ``refused:`` with the problem, which ``open_bytes`` raises: a
    sample's problems are reported together.
    """
    if ref.location is not None:
        return ref.location
    source = ref.source
    if source[:5].lower() == INLINE:
        return INLINE + source[5:]
    if (raw := first_bytes.as_data_uri(source.removeprefix("base64://"))) is not None:
        return raw
    if source.startswith("file:/"):
        source = urllib.parse.unquote(source.removeprefix("file://").removeprefix("localhost").removeprefix("file:"))
    remote = storage.is_remote(source) or (storage.is_remote(media_root) and not os.path.isabs(source))
    if remote and not rules.allow_remote:
        advice = "download it and name the file, or set data.allow_remote: true"
        return _refused("image-missing", f"remote address {shown(source)} is not read; {advice}")
    path = storage.join(media_root, source)
    if rules.confine and not _is_inside(path, media_root):
        return _refused("image-outside", leads_outside(path, media_root))
    if remote and not storage.may_be_named(path, media_root):
        advice = f"records may name web addresses and those of {', '.join(storage.STORES)}; download it"
        return _refused("image-missing", f"an address of the kind of {shown(source)} is not read; {advice}")
    if _is_tar(media_root) and not os.path.isabs(source) and not storage.is_remote(source):
        return _member_of_tar(source, media_root)
    root = storage.absolute(media_root) if rules.confine else None
    return guarded.name(storage.absolute(path), Guard(root, _private(path, media_root, rules)))


def _private(path: str, media_root: str, rules: Rules) -> Private:
    if not storage.is_web(path):
        return Private.NONE
    if rules.allow_private:
        return Private.ALL
    return Private.OWN_HOST if guarded.same_host(path, media_root) else Private.NONE


def _is_tar(root: str) -> bool:
    """Whether images are members of an archive; a folder may have any name."""
    return root.lower().endswith(".tar") and not os.path.isdir(root)


def _member_of_tar(name: str, path: str) -> str:
    try:
        place = tars.find(path, name)
    except OSError as error:
        return _refused("image-unreadable", f"cannot read {path!r}: {error.strerror or error}")
    if place is None:
        near = tars.find_nearly(path, name)
        advice = f"it has {shown(near)}" if near else "fix the name or media_dir"
        return _refused("image-missing", f"no member {shown(name)} in {path!r}; {advice}")
    return members.name("tar", path, *place, name)


def _refused(code: Code, message: str) -> str:
    return REFUSED + orjson.dumps([code, message.encode("utf-8", "replace").decode()]).decode()


def leads_outside(path: str, root: str) -> str:
    return f"{shown(path)} leads outside the media folder {root!r}; move the file in, or set confine: false"


def _is_inside(path: str, root: str) -> bool:
    if storage.is_remote(path) or storage.is_remote(root):
        return guarded.in_folder(path, root)
    try:
        return beneath.lies_in(path, root)
    except ValueError:  # not a file name (a NUL byte in it): nothing lies outside
        return True


def is_remote(location: str) -> bool:
    """Whether the bytes of an image come over the network."""
    if location.startswith((INLINE, REFUSED)):
        return False
    path = guarded.path_of(location)
    return storage.is_remote(members.container(path) if path.startswith(members.PREFIX) else path)


def key(location: str) -> str:
    """Name of an image in a cache; what is inside the data file itself goes by its hash."""
    if not location.startswith(INLINE):
        path, guard = guarded.parse(location)
        return path if guard.root is None else location  # what lies in its folder for one source may not for another
    return INLINE + hashlib.blake2b(location.encode(), digest_size=16).hexdigest()


def same_file(location: str) -> str:
    """What is the same for all ways to write the path of one file; links are not followed."""
    if location.startswith((INLINE, REFUSED)):
        return key(location)
    path = guarded.path_of(location)
    return path if path.startswith(members.PREFIX) or is_remote(location) else os.path.normpath(path)


def stamp(
    location: str,
    containers: dict[str, Stamp | None],
    ask: Callable[[str], Stamp | None] = storage.stamp,
) -> Stamp | None:
    """Tells whether the file that holds an image changed; None if there is none.

    Args:
        location: as ``measure.open_bytes`` takes it.
        containers: what is known of files that hold many images; each is asked once and added.
        ask: how a container is asked.
    """
    if location.startswith((INLINE, REFUSED)):
        return len(location), 0
    if location.startswith(members.PREFIX):
        container = members.container(location)
        if container not in containers:
            containers[container] = ask(container)
        return containers[container]
    if is_remote(location):
        return 0, 0  # to ask for every remote file at every start would cost a request each
    return storage.stamp(guarded.path_of(location))


def shown(location: str) -> str:
    """How messages name an image; a name of any length stays readable."""
    if location.startswith(INLINE):
        return "the base64 data"
    location = guarded.path_of(location)
    if location.startswith(members.PREFIX):
        location = members.shown(location)
    return repr(location if len(location) <= 300 else f"{location[:140]}...{location[-140:]}")
