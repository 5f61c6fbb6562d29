"""Whether a run computes once what its samples share, and what that saves: known from the plan, before torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triptych.corpus.corpus import Corpus
from triptych.errors import ConfigError
from triptych.family.family import ModelFiles
from triptych.family.shapes import SLIDING, ModelShapes
from triptych.planning.cost import SampleCost
from triptych.planning.plan import Lengths
from triptych.planning.prefixes import Prefixes
from triptych.planning.sharing import Sharing, make_sharing
from triptych.rows.builder import Share
from triptych.rows.sharing import load_or_find
from triptych.run.prepare import plan_training
from triptych.run.settings import RunSettings

WORTH = 0.1
"""Share of an epoch's work from which on sharing is worth that samples of one group share a step."""


@dataclass(frozen=True, slots=True)
class Savings:
    """What sharing saves of an epoch."""

    tokens: float
    """Share of its tokens that are not computed again"""
    images: float
    """The same of its patches"""
    work: float
    """The same of its estimated FLOPs"""

    def __str__(self) -> str:
        kinds = [(self.tokens, "tokens"), (self.images, "image patches")]
        named = next(((share, name) for share, name in kinds if share), kinds[0])
        return (
            f"{named[0]:.0%} of the {named[1]} are shared by samples that begin alike; an epoch takes "
            f"{1 - self.work:.2f} of the work"
        )


@dataclass(frozen=True, slots=True)
class ShareDecision:
    """Whether a run shares."""

    sharing: Sharing | None
    """What its samples share; None where each is computed alone"""
    savings: Savings | None
    """None where the run cannot share"""
    line: str
    """For people; empty where there is nothing to say"""
    share: Share = "nothing"
    """What the samples of a row share"""


def decide_sharing(settings: RunSettings, files: ModelFiles, corpus: Corpus, cost: SampleCost) -> ShareDecision:
    """Decide about ``batch.share``.

    Args:
        settings: of the run; its rows have a size.
        files: of the model.
        corpus: its samples.
        cost: what a sample costs.

    Raises:
        ConfigError: under ``on``, if the run cannot share.
    """
    asked = settings.batch.share
    reason = _why_not(settings, files.shapes)
    if reason:
        if asked == "on":
            raise ConfigError(f"batch.share: on, but {reason}")
        return ShareDecision(None, None, f"sharing off: {reason}" if asked == "auto" else "")
    images_only = files.family.recurrent
    prefixes = load_or_find(corpus)
    saved = _saved_work(prefixes, corpus, cost, images_only=images_only)
    sharing = make_sharing(prefixes, corpus.geometry.merge_size**2, saved, images_only=images_only)
    found = _savings(settings, corpus, cost, sharing)
    note = f"; {files.family.name}'s recurrent layers cannot branch, so only images are" if images_only else ""
    if asked == "on" or (asked == "auto" and found.work >= WORTH):
        line = f"sharing: {found}; samples of one group come in one row{note}"
        return ShareDecision(sharing, found, line, "images" if images_only else "starts")
    if asked == "auto":
        return ShareDecision(None, found, f"sharing off: it would save {found.work:.0%} of the work")
    advice = f"sharing off; batch.share=auto would help: {found}{note}" if found.work >= WORTH else ""
    return ShareDecision(None, found, advice)


def _why_not(settings: RunSettings, shapes: ModelShapes) -> str:
    """Why samples of this run cannot share, or nothing."""
    if settings.model.attention in ("sdpa", "eager"):
        return (
            f"model.attention: {settings.model.attention} knows no samples that share a start; use sample_sdpa, "
            "varlen, a flash attention, or auto"
        )
    if SLIDING in shapes.language.kinds:
        return "this model's layers attend within sliding windows"
    return ""


def _saved_work(prefixes: Prefixes, corpus: Corpus, cost: SampleCost, *, images_only: bool) -> NDArray[np.int64]:
    """(K,) work that the sample at each place need not cost after the one before."""
    patches = prefixes.image_tokens * corpus.geometry.merge_size**2
    shares = patches / np.maximum(corpus.lengths.patches[prefixes.samples], 1)
    tokens = np.zeros_like(patches) if images_only else prefixes.tokens
    squares = corpus.squared_patches[prefixes.samples] * shares
    return cost.of(Lengths(tokens, patches), squares, np.zeros_like(patches))


def _savings(settings: RunSettings, corpus: Corpus, cost: SampleCost, sharing: Sharing) -> Savings:
    """What an epoch that shares saves, by the rows of the first one; where rows have no size yet, if all samples that
    begin alike share one.
    """
    if settings.batch.auto:
        return _saved_at_most(corpus, cost, sharing)
    one = settings.model_copy(update={"train": settings.train.model_copy(update={"epochs": 1})})
    plan = plan_training(one, corpus, 1, cost, sharing)
    shared, alone = plan.lengths(corpus.lengths), plan.sums(corpus.lengths.tokens)
    tokens = 1 - float(shared.tokens.sum()) / max(1.0, float(alone.sum()))
    images = 1 - float(shared.patches.sum()) / max(1.0, float(plan.sums(corpus.lengths.patches).sum()))
    costs = corpus.costs(cost)
    return Savings(tokens, images, 1 - float(plan.costs(costs).sum()) / max(1.0, float(plan.sums(costs).sum())))


def _saved_at_most(corpus: Corpus, cost: SampleCost, sharing: Sharing) -> Savings:
    saved, lengths = sharing.saved, corpus.lengths
    tokens = float(saved.tokens.sum()) / max(1.0, float(lengths.tokens.sum()))
    images = float(saved.patches.sum()) / max(1.0, float(lengths.patches.sum()))
    work = float(saved.costs.sum()) / max(1.0, float(corpus.costs(cost).sum()))
    return Savings(tokens, images, work)
