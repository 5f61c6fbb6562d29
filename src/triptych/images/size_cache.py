"""One small table of measured images, shared by all runs, models and pixel limits of a user.

SQLite keeps it whole under two processes at once and under a kill at any moment. Only the process that plans a run
touches it; workers measure and hand over.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from triptych.errors import Code, ConfigError
from triptych.images.cache_files import row_sum
from triptych.sources.storage import Stamp

T = TypeVar("T")

FILE = "headers-4.sqlite"
"""The number changes when measuring does: what an older version measured is then measured again."""

WAIT_SECONDS = 120.0
_ASKED_AT_ONCE = 500

_TABLE = """CREATE TABLE IF NOT EXISTS headers (
    location TEXT PRIMARY KEY, size INTEGER, version INTEGER, height INTEGER, width INTEGER,
    traits INTEGER, code TEXT, message TEXT, decoded INTEGER, checksum INTEGER
) WITHOUT ROWID"""


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of one image file."""

    stamp: Stamp
    """Of the file when it was measured; another one means that it changed since."""
    height: int
    """px, upright; 0 for an image that cannot be used"""
    width: int
    traits: int = 0
    """What not every program treats alike; see ``triptych.images.traits``."""
    code: Code | None = None
    """What is wrong with it, None if it is good."""
    message: str = ""
    decoded: bool = False
    """Whether all of it was decoded once, not only its header."""


class HeaderCache:
    """The table, in ``folder``. A damaged one is set aside and begun again: all in it can be measured again."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE

    def lookup(self, locations: Sequence[str]) -> dict[str, Header]:
        """What is known of ``locations``, whatever became of the files since."""

        def ask(connection: sqlite3.Connection) -> dict[str, Header]:
            found: dict[str, Header] = {}
            for start in range(0, len(locations), _ASKED_AT_ONCE):
                asked = locations[start : start + _ASKED_AT_ONCE]
                marks = ",".join("?" * len(asked))
                for row in connection.execute(f"SELECT * FROM headers WHERE location IN ({marks})", asked):
                    *values, checksum = row
                    if checksum != row_sum(values):
                        continue  # damaged: it is measured again, and written over
                    location, size, version, height, width, traits, code, message, decoded = values
                    found[location] = Header((size, version), height, width, traits, code, message, bool(decoded))
            return found

        return self._run(ask)

    def store(self, headers: Iterable[tuple[str, Header]]) -> None:
        """Remember what was measured, in one transaction."""
        rows = [_row(location, item) for location, item in headers]
        if rows:
            self._run(
                lambda c: c.executemany("INSERT OR REPLACE INTO headers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            )

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return self._try(work)
        except sqlite3.OperationalError as error:  # locked for minutes, disk full, no permission: not damage
            raise ConfigError(
                f"cannot use the cache {self.path}: {error}; choose another with TRIPTYCH_CACHE"
            ) from error
        except sqlite3.DatabaseError:
            self.path.replace(self.path.with_suffix(".damaged"))
            return self._try(work)

    def _try(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with closing(sqlite3.connect(self.path, timeout=WAIT_SECONDS)) as connection, connection:
            connection.execute(_TABLE)
            return work(connection)


def _row(location: str, header: Header) -> tuple[str | int | None, ...]:
    found = (header.height, header.width, int(header.traits), header.code, header.message)
    values = (location, *header.stamp, *found, int(header.decoded))
    return (*values, row_sum(values))
