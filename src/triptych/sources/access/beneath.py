"""Open a file only where it lies in a folder, whatever links are put in its way meanwhile.

The path is resolved once. Then every folder of it, and the file, is opened relative to the descriptor of the one before
it, and none may be a link: a link that was put there after the path was resolved ends in an error, not outside.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import IO

from triptych.sources.access.guarded import OutsideError

WALKS = os.open in os.supports_dir_fd and hasattr(os, "O_NOFOLLOW")
"""Whether this system opens files relative to a folder. Without it the opened file is compared with its path."""

_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_PATH", 0)
_FILE = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: str, root: str | None = None) -> IO[bytes]:
    """Open a regular file for reading.

    Args:
        path: of the file.
        root: folder that it must lie in, once all links are resolved; None for anywhere.

    Raises:
        OutsideError: if it lies outside ``root``.
        IsADirectoryError: if it is a folder.
        OSError: if it cannot be opened, or is a pipe or device.
    """
    descriptor = os.open(path, _FILE) if root is None else _open_beneath(path, root)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a pipe or device, not a file", path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def lies_in(path: str, root: str) -> bool:
    """Whether a path leads into a folder now, once all links are resolved."""
    return _is_below(os.path.realpath(path), os.path.realpath(root))


def _is_below(real: str, real_root: str) -> bool:
    return os.path.commonpath((real_root, real)) == real_root


def _open_beneath(path: str, root: str) -> int:
    real, real_root = os.path.realpath(path), os.path.realpath(root)  # once: a link may lead elsewhere the next time
    if not _is_below(real, real_root):
        raise OutsideError(errno.EACCES, "it leads outside", path)
    if not WALKS:
        return _open_and_compare(real)
    *folders, file = os.path.relpath(real, real_root).split(os.sep)
    at = os.open(real_root, _FOLDER)
    try:
        for folder in folders:
            below = os.open(folder, _FOLDER, dir_fd=at)
            os.close(at)
            at = below
        return os.open(file, _FILE | os.O_NOFOLLOW, dir_fd=at)
    except OSError as error:
        # O_NOFOLLOW says ELOOP of a link, with O_DIRECTORY ENOTDIR; both were neither when the path was resolved.
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise OutsideError(errno.EACCES, "a link was put in its way", path) from error
        raise
    finally:
        os.close(at)


def _open_and_compare(real: str) -> int:
    descriptor = os.open(real, _FILE)
    if os.path.realpath(real) == real and os.path.samestat(os.fstat(descriptor), os.stat(real)):
        return descriptor
    os.close(descriptor)
    raise OutsideError(errno.EACCES, "a link was put in its way", real)
