"""The live report of a run: which samples it shows, and whether the model can answer them while it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, TrainerCallback

from triptych.forward.attention import Attention
from triptych.inference.judging import make_judge
from triptych.inference.showing import Shower, answering, choose_samples
from triptych.pages.cards import Card, prompt_card
from triptych.pages.thumbnails import add_images
from triptych.recovery.stopping import Stopped
from triptych.reports.compare import flat
from triptych.reports.live import REPORT, LiveReport
from triptych.run.reporter import Reporter
from triptych.training.context import TrainingContext
from triptych.training.watch.answer_tables import AnswerTables, tracker_tables
from triptych.training.watch.live_callback import LiveCallback
from triptych.training.watch.trackers import TolerantCallback

if TYPE_CHECKING:
    from peft import PeftModel

LONGEST_VALUE = 300
"""Characters of a setting that the page shows."""
IMAGE_BYTES = 4_000_000
"""Characters of the copies of images in the page."""


def live_callback(
    context: TrainingContext, model: PreTrainedModel | PeftModel, attention: Attention, board: Any, out: Reporter
) -> LiveCallback:
    """What keeps the report of a run current, and the answers in its trackers.

    Args:
        context: of the run.
        model: that is trained.
        attention: that it trains with.
        board: transformers' TensorBoard callback, or None.
        out: for what fails.
    """
    shower = _shower(context, out)
    cards = []
    if shower is not None:
        template, corpus = context.prepared.encoder.template, shower.corpus
        for index in shower.samples:
            cards.append({**prompt_card(corpus, template, index), "reference": shower.reference(index)})
        sized = [image for index in shower.samples for image in corpus.images(index)]
        add_images(list(zip([image for card in cards for image in card["images"]], sized, strict=True)), IMAGE_BYTES)
    factor = context.prepared.encoder.geometry.factor
    report = LiveReport(context.output, _about(context), cards, factor)
    tables = partial(_tables, context, cards, board, out)
    return LiveCallback(report, shower, lambda: answering(model, attention, context.precision), tables)


def _tables(context: TrainingContext, cards: list[Card], board: Any, out: Reporter) -> AnswerTables:
    """TensorBoard's files stay in the output, which holds the report; others are sent what the settings say."""
    sent = context.settings.train.show.to_trackers
    named = context.args.report_to or []
    trackers = [] if sent == "nothing" else [named] if isinstance(named, str) else list(named)
    return AnswerTables(
        cards, tracker_tables(trackers, getattr(board, "tb_writer", None), images=sent == "images"), out
    )


@contextmanager
def reported(callbacks: list[TrainerCallback], out: Reporter) -> Iterator[None]:
    """The report says how the training inside has ended."""
    try:
        yield
    except Stopped as stop:
        _end(callbacks, "stopped", str(stop))
        raise
    except BaseException as error:
        _end(callbacks, "failed", f"{type(error).__name__}: {error}"[:500])
        raise
    report = _end(callbacks, "finished", "")
    if report is not None:
        verdict = report.images_verdict()
        out.line("\n".join(filter(None, (f"report: {Path(report.output) / REPORT}", verdict))))


def _end(callbacks: list[TrainerCallback], state: str, message: str) -> LiveReport | None:
    for callback in callbacks:
        inner: Any = callback.inner if isinstance(callback, TolerantCallback) else callback
        if isinstance(inner, LiveCallback):
            try:
                inner.report.end(state, message)
            except OSError:
                return None  # said when it first failed, or the disk is full, which the error itself says
            return inner.report
    return None


def _shower(context: TrainingContext, out: Reporter) -> Shower | None:
    show = context.settings.train.show
    if not show.samples:
        return None
    if context.sharded or context.settings.train.compile:
        reason = "weights are sharded" if context.sharded else "layers are compiled"
        out.line(f"no answers in the report while {reason}; triptych eval answers afterwards")
        return None
    corpora = context.prepared.corpora
    corpus = corpora.get("eval") or corpora["train"]
    samples = choose_samples(corpus, show.samples, context.settings.train.seed)
    return Shower(corpus, context.prepared, samples, make_judge(context.settings.eval), show.max_new_tokens)


def _about(context: TrainingContext) -> dict[str, str]:
    """Settings that are not the defaults, as the run file writes them."""
    content = flat(context.settings.model_dump(mode="json", exclude_defaults=True))
    return {name: value[:LONGEST_VALUE] for name, value in content.items()}
