"""The page of an evaluation: scores, and answers beside their images; of several models side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

from triptych.corpus.corpus import Corpus
from triptych.inference.predictions import Evaluation, Prediction, Score
from triptych.pages import page
from triptych.pages.cards import Card, prompt_card
from triptych.pages.differences import word_difference
from triptych.pages.strata import choose
from triptych.pages.thumbnails import add_images
from triptych.run.prepare import Prepared

MOST_CARDS = 500
DETAIL_BYTES = 6_000_000
"""Characters of the larger copies of images in a page."""


def write_page(
    path: Path, title: str, names: Sequence[str], evaluations: Sequence[Evaluation], prepared: Prepared
) -> None:
    """Write the page of some models, whose names are shown, all having answered the same samples.

    Raises:
        OSError: if it cannot be written.
    """
    corpus = prepared.corpora["eval"]
    numbers = {str(corpus.origin(index)): index for index in range(len(corpus))}
    by_model = [{numbers[item.origin]: item for item in found.predictions} for found in evaluations]
    answered = sorted({index for found in by_model for index in found})
    chosen = choose(_kinds(by_model), len(answered), MOST_CARDS)
    shown = [answered[place] for place in chosen]
    cards = [_card(corpus, prepared, index, by_model) for index in shown]
    sized = [corpus.images(index) for index in shown]
    add_images(
        [pair for card, images in zip(cards, sized, strict=True) for pair in zip(card["images"], images, strict=True)],
        DETAIL_BYTES,
    )
    data = {
        "models": list(names),
        "about": f"{len(answered):,} held-out samples. Scores are means with 95% bootstrap intervals.",
        "scores": _score_rows(evaluations),
        "cells": _cells(by_model),
        "fields": list(dict.fromkeys(name for found in evaluations for name in found.by)),
        "factor": corpus.geometry.factor,
        "cards": cards,
        "left_out": _left_out(len(answered), len(cards)),
    }
    page.write_page(path, title, ["eval"], data)


def _kinds(by_model: Sequence[dict[int, Prediction]]) -> dict[str, list[int]]:
    """Samples by task, and by how the first and the last model have answered: some of each are shown."""
    answered = sorted({index for found in by_model for index in found})
    kinds: dict[str, list[int]] = {}
    for rank, index in enumerate(answered):
        items = [found.get(index) for found in (by_model[0], by_model[-1])]
        task = next((item.task for item in items if item is not None), None)
        words = " ".join("none" if item is None else "right" if item.right else "wrong" for item in items)
        kinds.setdefault(f"{words} {task}", []).append(rank)
    return dict(sorted(kinds.items(), key=lambda kind: "right right" in kind[0]))


def _card(corpus: Corpus, prepared: Prepared, index: int, by_model: Sequence[dict[int, Prediction]]) -> Card:
    items = [found.get(index) for found in by_model]
    known = next(item for item in items if item is not None)
    answers = [None if item is None else _answer(item) for item in items]
    return {
        **prompt_card(corpus, prepared.encoder.template, index),
        "reference": known.reference,
        "fields": known.fields,
        "answers": answers,
    }


def _answer(item: Prediction) -> dict[str, Any]:
    return {
        "text": item.prediction,
        "difference": word_difference(item.reference.strip(), item.prediction.strip()),
        "right": item.right,
        "finished": item.finished,
        "scores": item.scores,
        "length": len(item.prediction),
    }


def _score_rows(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """A row for each group and scorer, with the mean of each model."""
    rows = []
    tables = [("task", [found.scores for found in evaluations])]
    for name in dict.fromkeys(name for found in evaluations for name in found.by):
        tables.append((name, [found.by.get(name, {}) for found in evaluations]))
    for kind, groups in tables:
        for group in dict.fromkeys(name for found in groups for name in found):
            scores = [found.get(group) for found in groups]
            for scorer in dict.fromkeys(name for item in scores if item is not None for name in item.means):
                means = [_mean(item, scorer) for item in scores]
                samples = max(item.samples for item in scores if item is not None)
                rows.append({"group": kind, "name": group, "samples": samples, "scorer": scorer, "means": means})
    return rows


def _mean(score: Score | None, scorer: str) -> dict[str, float] | None:
    found = None if score is None else score.means.get(scorer)
    return None if found is None else {"value": found.value, "low": found.low, "high": found.high}


def _cells(by_model: Sequence[dict[int, Prediction]]) -> dict[str, dict[str, int]]:
    """For each two models, how many samples both have right, one, or none."""
    cells: dict[str, dict[str, int]] = {}
    pairs = [*permutations(range(len(by_model)), 2), *((number, number) for number in range(len(by_model)))]
    for before, after in pairs:
        counts: dict[str, int] = {}
        for index in by_model[before].keys() & by_model[after].keys():
            words = ("right" if item.right else "wrong" for item in (by_model[before][index], by_model[after][index]))
            name = " → ".join(words)
            counts[name] = counts.get(name, 0) + 1
        cells[f"{before},{after}"] = counts
    return cells


def _left_out(answered: int, shown: int) -> str:
    if shown == answered:
        return ""
    what = "some of every task and outcome; predictions.jsonl holds all"
    return f"{shown:,} of {answered:,} samples are in this page, {what}"
