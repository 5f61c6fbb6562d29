"""What to look at in a run: rules with numbers, each a sentence that says what was seen and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from triptych.reports.answers import Matter, Showing

RISEN = 1.02
"""Times its lowest value that an evaluation loss must reach to be called rising."""
WAITING = 0.15
SPIKE = 10.0
FEW_FULL = 0.7
RECENT = 10
"""Reports that say how it is now."""
CUT_OFF = 0.5
DEPENDS = 0.2
"""Share of answers that must change for images to matter."""


def what_to_look_at(
    history: Sequence[Mapping[str, Any]], showings: Sequence[Showing], references: Sequence[str]
) -> list[str]:
    """Sentences on what is unusual, the gravest first.

    Args:
        history: the reports of the run.
        showings: its answers over the steps.
        references: what the samples that are shown should be answered with.
    """
    return [*_losses(history), *_norms(history), *_answers(showings, references), *_speed(history)]


def _values(history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(entry["step"], entry[key]) for entry in history if isinstance(entry.get(key), (int, float))]


def _losses(history: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    held_out, trained = _values(history, "eval_loss"), _values(history, "loss")
    if len(held_out) >= 3:
        step, lowest = min(held_out, key=lambda item: item[1])
        last_step, last = held_out[-1]
        before = [value for at, value in trained if at <= step][-RECENT:]
        now = [value for at, value in trained if at > step][-RECENT:]
        if last_step > step and last > RISEN * lowest and before and now and fmean(now) < fmean(before):
            yield (
                f"The evaluation loss rises while the training loss falls: {lowest:.4g} at step {step:,}, {last:.4g} "
                f"at step {last_step:,}. The model learns the training samples by heart: train fewer epochs, or set "
                "train.patience, which also keeps the best."
            )
    if len(trained) >= 4 * RECENT:
        first, last = fmean(v for _, v in trained[:RECENT]), fmean(v for _, v in trained[-RECENT:])
        if last >= first:
            yield (
                f"The training loss does not fall: {first:.4g} in the first reports, {last:.4g} in the last. Look at "
                "the trained text with triptych inspect, and at train.learning_rate."
            )


def _norms(history: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    norms = _values(history, "grad_norm")
    if len(norms) < RECENT:
        return
    usual = median(value for _, value in norms)
    spikes = [(step, value) for step, value in norms if value > SPIKE * usual]
    if spikes and usual > 0:
        step, value = max(spikes, key=lambda item: item[1])
        yield (
            f"The gradient norm spiked in {len(spikes)} of {len(norms)} reports: {value:.3g} at step {step:,}, usually "
            f"{usual:.3g}. The log names samples of such steps; a longer train.warmup or a lower rate helps."
        )


def _answers(showings: Sequence[Showing], references: Sequence[str]) -> Iterator[str]:
    if not showings or len(showings[-1].answers) < 3:
        return
    last = showings[-1]
    texts = [answer.text.strip() for answer in last.answers]
    if len(set(texts)) == 1 and len({text.strip() for text in references}) > 1:
        yield (
            f"All {len(texts)} answers at step {last.step:,} are equal ({texts[0][:60]!r}), the expected ones are not: "
            "the model answers without looking, or has collapsed."
        )
    cut = sum(not answer.finished for answer in last.answers)
    if cut >= CUT_OFF * len(texts):
        yield (
            f"{cut} of {len(texts)} answers at step {last.step:,} are cut off: raise train.show.max_new_tokens, or see "
            "whether the model has learned to end its answers."
        )


def _speed(history: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    waits = [value for _, value in _values(history, "data_wait")][-RECENT:]
    if len(waits) >= 3 and fmean(waits) > WAITING:
        yield (
            f"Training waits for images {fmean(waits):.0%} of the time: raise data.workers or data.prefetch_mb, or set "
            "data.decode: fast."
        )
    fills = [value for _, value in _values(history, "row_fill")][-RECENT:]
    if len(fills) >= 3 and fmean(fills) < FEW_FULL:
        yield f"Rows are {fmean(fills):.0%} full: raise batch.tokens or batch.patches, so that samples pack better."


def do_images_matter(found: Sequence[Matter]) -> str:
    """A sentence on whether answers depend on the images; empty where nothing was tried."""
    tried = [item for item in found if item.asked]
    if not tried:
        return ""
    parts = ", ".join(f"{item.changed} of {item.asked} change when {item.change}" for item in tried)
    most = max(item.changed / item.asked for item in tried)
    verdict = "The images matter" if most >= DEPENDS else "The images do not seem to matter"
    return f"{verdict}: of the answers, {parts}."
