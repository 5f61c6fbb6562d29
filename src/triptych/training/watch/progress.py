"""A bar and a line per report, on the terminal."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from triptych.run.reporter import Advance, LogLines, Reporter


class ReportCallback(TrainerCallback):
    """A bar of the steps done, and a line per report."""

    def __init__(self, out: Reporter) -> None:
        self.out = out
        self.log = LogLines(out.width)
        self.bar = ExitStack()
        self.advance: Advance = ignore
        self.done = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.advance = self.bar.enter_context(self.out.bar("training", state.max_steps))
        self._advance_to(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._advance_to(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and ("loss" in logs or "eval_loss" in logs):
            for line in self.log.lines(logs, state.global_step, state.max_steps):
                self.out.line(line)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away, also where training ended before its end."""
        self.bar.close()

    def _advance_to(self, step: int) -> None:
        self.advance(step - self.done)
        self.done = step


def ignore(_done: int) -> None:
    """No bar is open."""
