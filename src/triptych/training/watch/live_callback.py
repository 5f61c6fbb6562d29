"""Keeps the live report current, at the events of training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from triptych.inference.showing import Shower
from triptych.reports.live import LiveReport
from triptych.training.watch.answer_tables import AnswerTables


class LiveCallback(TrainerCallback):
    """Keeps ``report.html`` current, with answers over the steps where the model can answer while it trains."""

    def __init__(
        self,
        report: LiveReport,
        shower: Shower | None,
        ready: Callable[[], AbstractContextManager[PreTrainedModel]],
        tables: Callable[[], AnswerTables],
    ) -> None:
        """
        Args:
            report: the page.
            shower: answers the samples; None for a page without answers.
            ready: gives the model ready to generate, and makes it as it was.
            tables: makes the tables of the trackers, once these have begun.
        """
        self.report = report
        self.shower = shower
        self.ready = ready
        self._make_tables = tables
        self._tables: AnswerTables | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.report.begin(state.log_history, state.global_step, state.max_steps)
        if state.global_step == 0:
            self._show(0)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.report.update(state.log_history, state.global_step)

    on_log = on_step_end
    on_prediction_step = on_step_end

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.report.update(state.log_history, state.global_step)
        self._show(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.report.update(state.log_history, state.global_step)
        self._show(state.global_step)
        if self.shower is not None:
            with self.ready() as model:
                self.report.matter(self.shower.matter(model, 4 * len(self.shower.samples)))

    def _show(self, step: int) -> None:
        if self.shower is not None and not self.report.showings.has(step):
            with self.ready() as model:
                answers = self.shower.answers(model)
            self.report.show(step, answers)
            if self._tables is None:
                self._tables = self._make_tables()
            self._tables.show(step, answers)
