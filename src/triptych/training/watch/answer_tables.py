"""Answers over the steps of a run as tables of its trackers, images beside them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from triptych.pages.cards import Card
from triptych.reports.answers import ShownAnswer
from triptych.run.reporter import Reporter

COLUMNS = ("sample", "question", "images", "expected", "answer", "right")
NAME = "answers"
GAP = 4
"""px between two images of a strip."""


@dataclass(frozen=True, slots=True)
class Row:
    """One sample and what the model answers it at a step, in the order of ``COLUMNS``."""

    sample: str
    question: str
    """The turns, ``[image 1]`` where an image stands"""
    images: Image.Image | None
    """Small copies of them, side by side"""
    expected: str
    answer: str
    right: bool

    def cells(self, image: Callable[[Image.Image], Any]) -> tuple[Any, ...]:
        """The row for a tracker whose own class of images is ``image``."""
        shown = None if self.images is None else image(self.images)
        return self.sample, self.question, shown, self.expected, self.answer, self.right


Table = Callable[[int, Sequence[Row]], None]
"""Shows the rows of a step in one tracker."""


class AnswerTables:
    """The tables of all trackers; one that fails is said once and left out."""

    def __init__(self, cards: Sequence[Card], tables: Mapping[str, Table], out: Reporter) -> None:
        """
        Args:
            cards: the samples that are shown, each with ``reference``.
            tables: name of a tracker -> its table.
            out: for what fails.
        """
        self._cards = list(cards)
        self._tables = dict(tables)
        self._strips = [strip(card["images"]) for card in cards] if tables else []
        self._out = out

    def show(self, step: int, answers: Sequence[ShownAnswer]) -> None:
        """Answers to the samples at a step."""
        if not self._tables:
            return
        found = zip(self._cards, self._strips, answers, strict=True)
        rows = [
            Row(card["origin"], question(card), images, card["reference"], answer.text, answer.right)
            for card, images, answer in found
        ]
        for tracker, table in list(self._tables.items()):
            try:
                table(step, rows)
            except Exception as error:  # of a library, a network or a disk
                del self._tables[tracker]
                self._out.line(
                    f"no more answers in {tracker} ({type(error).__name__}: {error}); {tracker} itself goes on"
                )


def question(card: Card) -> str:
    """What the model is asked, as text: a line for each turn, images as ``[image 1]``."""
    lines = []
    for turn in card["turns"]:
        shown = [part for part in turn["parts"] if not part.get("m")]
        text = "".join(f"[image {part['i'] + 1}]" if "i" in part else part["s"] for part in shown).strip()
        lines.append(f"{turn['role']}: {text}" if len(card["turns"]) > 1 and turn["role"] else text)
    return "\n".join(lines)


def strip(images: Sequence[Mapping[str, Any]]) -> Image.Image | None:
    """The thumbnails of a card's images side by side; None if it has none."""
    thumbs = [_decoded(image["thumb"]) for image in images if "thumb" in image]
    if not thumbs:
        return None
    width = sum(thumb.width + GAP for thumb in thumbs) - GAP
    joined = Image.new("RGB", (width, max(thumb.height for thumb in thumbs)), "white")
    left = 0
    for thumb in thumbs:
        joined.paste(thumb, (left, 0))
        left += thumb.width + GAP
    return joined


def _decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")


def tracker_tables(trackers: Sequence[str], writer: Any, *, images: bool) -> dict[str, Table]:
    """Tables of the trackers that have any.

    Args:
        trackers: of ``train.hf.report_to``, which are sent answers.
        writer: torch's ``SummaryWriter`` of this run; None without TensorBoard.
        images: also send them the images; TensorBoard gets them in any case.
    """
    known = {"wandb": _wandb, "trackio": _trackio, "swanlab": _swanlab}
    found = {name: known[name] if images else _without_images(known[name]) for name in trackers if name in known}
    return {"TensorBoard": TensorBoardTable(writer), **found} if writer is not None else found


def _without_images(table: Table) -> Table:
    return lambda step, rows: table(step, [replace(row, images=None) for row in rows])


class TensorBoardTable:
    """A Markdown table under Text, and the images of each sample once under Images: a text cannot hold them."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._showed_images = False

    def __call__(self, step: int, rows: Sequence[Row]) -> None:
        lines = ["sample | question | expected | answer | right", "--- | --- | --- | --- | ---"]
        for row in rows:
            cells = row.sample, row.question, row.expected, row.answer, "yes" if row.right else "no"
            lines.append(" | ".join(map(_cell, cells)))
        self._writer.add_text(NAME, "\n".join(f"| {line} |" for line in lines), step)
        if not self._showed_images:
            for row in rows:
                if row.images is not None:
                    self._writer.add_image(f"{NAME}/{row.sample}", np.asarray(row.images), step, dataformats="HWC")
            self._showed_images = True
        self._writer.flush()


def _cell(text: str) -> str:
    """Text that stays in its cell of a Markdown table, and that no page takes for markup."""
    for mark, written in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;"), ("`", "&#96;"), ("\n", "<br>")):
        text = text.replace(mark, written)
    return text


def _wandb(step: int, rows: Sequence[Row]) -> None:
    import wandb

    table = wandb.Table(columns=list(COLUMNS))
    for row in rows:
        table.add_data(*row.cells(wandb.Image))
    wandb.log({NAME: table, "train/global_step": step})


def _trackio(step: int, rows: Sequence[Row]) -> None:
    import pandas
    import trackio

    frame = pandas.DataFrame([row.cells(trackio.Image) for row in rows], columns=list(COLUMNS))
    trackio.log({NAME: trackio.Table(dataframe=frame), "train/global_step": step})


def _swanlab(step: int, rows: Sequence[Row]) -> None:
    import swanlab

    def words(row: Row) -> str:
        marks = f"{row.sample} ({'right' if row.right else 'wrong'})"
        return f"{marks}\n{row.question}\nexpected: {row.expected}\nanswer: {row.answer}"

    shown = {
        NAME: [swanlab.Image(row.images, caption=words(row)) for row in rows if row.images],
        f"{NAME}/text": [swanlab.Text(words(row)) for row in rows if not row.images],
    }
    swanlab.log({name: found for name, found in shown.items() if found}, step=step)
