"""The page of a run that trains: written once, and a script file beside it that is replaced as the run goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from triptych.pages import page
from triptych.pages.cards import Card
from triptych.pages.differences import word_difference
from triptych.reports.answers import Matter, Showings, ShownAnswer
from triptych.reports.history import curves
from triptych.reports.rules import do_images_matter, what_to_look_at

REPORT, DATA = "report.html", "report-data.js"
LEAST_SECONDS = 1.0
"""Between two replacements of the script file, and as often as that: twenty times what one takes."""
SHARE = 20


class LiveReport:
    """Keeps ``report.html`` current; every write is whole or absent."""

    def __init__(self, output: Path, about: Mapping[str, str], cards: Sequence[Card], factor: int) -> None:
        """
        Args:
            output: of the run.
            about: setting -> value, what the page says of the run.
            cards: the samples that are shown, each with ``reference``.
            factor: px of a token's side.
        """
        self.output = output
        self._about = dict(about)
        self._cards = list(cards)
        self._factor = factor
        self.showings = Showings(output)
        self.origins = [str(card["origin"]) for card in cards]
        self._references = [str(card["reference"]) for card in cards]
        self._history: Sequence[Mapping[str, Any]] = ()
        self._progress: dict[str, Any] = {"state": "running", "message": "", "step": 0, "steps": 0}
        self._matter: list[Matter] = []
        self._next = 0.0

    def begin(self, history: Sequence[Mapping[str, Any]], step: int, steps: int) -> None:
        """Write the page; a resumed run goes on with the answers of its earlier start.

        Raises:
            OSError: if it cannot be written.
        """
        data = {"about": self._about, "factor": self._factor, "cards": self._cards, "file": DATA}
        title = f"Run {self.output.name}"
        page.write_page(self.output / REPORT, title, ["charts", "report"], data, live=True)
        self.showings.go_on_from(step, self.origins)
        self._history = history
        self._progress |= {"step": step, "steps": steps, "started": _now()}
        self._write()

    def update(self, history: Sequence[Mapping[str, Any]], step: int) -> None:
        """The run has gone on; written if the last time is long enough ago.

        Raises:
            OSError: if it cannot be written.
        """
        self._history = history
        self._progress["step"] = step
        if time.monotonic() >= self._next:
            self._write()

    def show(self, step: int, answers: Sequence[ShownAnswer]) -> None:
        """Answers at a step.

        Raises:
            OSError: if they cannot be written.
        """
        self.showings.add(step, answers, self.origins)
        self._write()

    def matter(self, found: Sequence[Matter]) -> None:
        """What the answers became with other images."""
        self._matter = list(found)
        self._write()

    def end(self, state: str, message: str = "") -> None:
        """The run is over: ``finished``, ``stopped`` or ``failed``.

        Raises:
            OSError: if it cannot be written.
        """
        self._progress |= {"state": state, "message": message}
        self._write()

    def images_verdict(self) -> str:
        """Whether the images matter, in a sentence; empty where it was not tried."""
        return do_images_matter(self._matter)

    def _write(self) -> None:
        began = time.monotonic()
        data = {**self._progress, "updated": _now(), **self.content()}
        page.write_whole(self.output / DATA, f"liveReport({page.embedded(_finite(data))});\n")
        took = time.monotonic() - began
        self._next = time.monotonic() + max(LEAST_SECONDS, SHARE * took)

    def content(self) -> dict[str, Any]:
        """Curves, what to look at, and the answers over the steps."""
        showings = self.showings.found
        return {
            "curves": curves(self._history),
            "look": what_to_look_at(self._history, showings, self._references),
            "verdict": self.images_verdict(),
            "showings": [
                {
                    "step": showing.step,
                    "answers": [
                        shown_answer(answer, reference)
                        for answer, reference in zip(showing.answers, self._references, strict=False)
                    ],
                }
                for showing in showings
            ],
        }


def shown_answer(answer: ShownAnswer, reference: str) -> dict[str, Any]:
    """An answer for a page."""
    difference = word_difference(reference.strip(), answer.text.strip())
    return {"difference": difference, "right": answer.right, "finished": answer.finished}


def _now() -> int:
    """Milliseconds, as scripts count time."""
    return round(time.time() * 1000)


def _finite(value: Any) -> Any:
    """JSON has no numbers that are not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
