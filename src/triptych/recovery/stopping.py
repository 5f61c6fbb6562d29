"""Signals that ask a run to stop: the first one finishes the step and saves, the second one ends at once.

Light: the command line imports this before anything else of a run, so that a signal is heard from the start.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Literal

SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
"""What ends a run in good order -> the exit status then; also that of a second one, as shells show it."""

Phase = Literal["start", "training", "end"]


class Stopped(BaseException):
    """A signal ended the run in good order. Not an ``Exception``: no handler of errors may keep it."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.code = SIGNALS[name]


class Stop:
    """Whether somebody asked the run to stop."""

    def __init__(self) -> None:
        self.name: str | None = None
        """Of the signal; None if there was none."""
        self.phase: Phase = "start"

    def ask(self, name: str) -> None:
        """Have the run stop as soon as it can go on from there.

        Raises:
            Stopped: before training, where nothing is lost.
        """
        self.name = name
        _say(f"\ntriptych: {name}: {_PLANS[self.phase]}; a second signal ends it at once\n")
        if self.phase == "start":
            self.check()

    def check(self) -> None:
        """Between two parts of the start.

        Raises:
            Stopped: if a signal came.
        """
        if self.name is not None and self.phase == "start":
            raise Stopped(self.name, "stopped before the first step; nothing is lost, start it again the same way")


_PLANS: dict[Phase, str] = {
    "start": "stopping before the first step",
    "training": "finishing this step, then saving a checkpoint",
    "end": "training is over, finishing the last files",
}


@contextmanager
def listening() -> Iterator[Stop]:
    """Hear SIGINT, SIGTERM and SIGHUP, in the main thread; what was ignored before (``nohup``) stays ignored."""
    stop = Stop()
    before: dict[int, Any] = {}

    def hear(number: int, _: FrameType | None) -> None:
        for other in before:
            signal.signal(other, signal.SIG_DFL)  # the second one ends the process, whatever it is at
        stop.ask(signal.Signals(number).name)

    for name in SIGNALS:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, hear)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    """Not through a buffer, which may be half written when a signal comes."""
    with suppress(OSError):  # the terminal is gone: SIGHUP
        os.write(2, text.encode())
