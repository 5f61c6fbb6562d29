"""What the samples of a run ask of a server, in numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from triptych.corpus.corpus import Corpus
from triptych.exporting.trained_run import TrainedRun
from triptych.images.geometry import Geometry
from triptych.text.template import Template

LOOKED_AT = 2_000
"""Samples of each split whose answers are looked at for thoughts."""


@dataclass(frozen=True, slots=True)
class ServingNeeds:
    """What the samples of a run ask of a server."""

    images: int
    """Most images of a sample."""
    tokens: int
    """Longest sample as a server sees it, tokens: with its images at the limits per image."""
    new_tokens: int
    """Longest answer, tokens."""
    shrunk: bool
    """Whether the run made images smaller than that to keep a budget of the sample; a server does not."""
    context: int
    """Longest sequence that the model's positions allow, tokens."""
    skip_thinking: bool
    """Whether prompts must be told to leave thinking out, since no answer that was learned has any."""
    effort: str | None = None
    """What the chat template puts before the system text, and leaves out where thinking is turned off."""

    @property
    def length(self) -> int:
        """Tokens of the longest prompt and its answer."""
        return min(self.tokens + self.new_tokens, self.context)


def demands(
    corpora: Collection[Corpus],
    template: Template,
    geometry: Geometry,
    positions: int,
    *,
    new_tokens: int,
    shrunk: bool,
) -> ServingNeeds:
    """What the samples of ``corpora`` ask of a server; ``positions`` is the longest sequence that the model takes.

    Where budgets of the sample made images smaller, their tokens at a server are not known without measuring again;
    then every image counts as many as ``geometry`` allows one.
    """
    images = tokens = 0
    largest = geometry.max_pixels // geometry.factor**2
    for corpus in corpora:
        lengths = corpus.lengths.tokens
        if shrunk:
            seen = corpus.lengths.patches // geometry.merge_size**2
            lengths = lengths - seen + np.maximum(seen, corpus.image_counts * largest)
        tokens = max(tokens, int(lengths.max()))
        images = max(images, int(corpus.image_counts.max()))
    skip = _skip_thinking(corpora, template)
    return ServingNeeds(images, tokens, new_tokens, shrunk, positions, skip, template.style.effort)


def run_needs(run: TrainedRun) -> ServingNeeds:
    """What the samples of a run ask of a server."""
    return demands(
        run.corpora.values(),
        run.files.template(),
        run.geometry.for_servers(),
        run.files.shapes.language.positions,
        new_tokens=run.settings.eval.max_new_tokens,
        shrunk=run.shrunk,
    )


def _skip_thinking(corpora: Iterable[Corpus], template: Template) -> bool:
    if not (template.style.skips_thinking and template.style.thinks_by_default):
        return False
    looked_at = (corpus.encoded(index) for corpus in corpora for index in range(min(len(corpus), LOOKED_AT)))
    return not any(map(template.thinks, looked_at))
