"""What happens beside the training loop: epoch ends, report lines, the run's log file, TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from triptych.planning.plan import Plan
from triptych.recovery.stopping import Stopped
from triptych.run.reporter import Advance, LogLines, Reporter
from triptych.run.settings import RunSettings

LOG = "log.jsonl"


class EpochCallback(TrainerCallback):
    """Saves and evaluates where an epoch of the plan ends; to Trainer the whole plan is one pass."""

    def __init__(self, settings: RunSettings, plan: Plan) -> None:
        self.save = settings.train.save_every == "epoch"
        self.evaluate = settings.train.eval_every == "epoch" and settings.data.evaluates
        rows = settings.train.rows_per_step
        self.ends = {-(-min(int(bound), len(plan)) // rows) for bound in plan.epoch_bounds[1:]}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if state.global_step in self.ends:
            control.should_save = control.should_save or self.save
            control.should_evaluate = control.should_evaluate or self.evaluate
        return control


class StopCallback(TrainerCallback):
    """Ends the run after a signal: the step is finished and saved, then training is left."""

    def __init__(self) -> None:
        self.signal: Callable[[], str | None] = lambda: None
        """Name of the signal after which the run ends with this step; the trainer's."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        control.should_save = control.should_save or self.signal() is not None
        return control

    on_evaluate = on_step_end

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        name = self.signal()
        if name is not None:
            saved = f"{args.output_dir}/checkpoint-{state.global_step}"
            raise Stopped(name, f"stopped after step {state.global_step}; saved in {saved}, go on with --resume")


class RunLogCallback(TrainerCallback):
    """Keeps ``log.jsonl``, one object per report; a resumed run goes on where its checkpoint was written.

    Each report is in the checkpoints, too: what could not be written is there after the next start.
    """

    def __init__(self, output: Path) -> None:
        self.path = output / LOG

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        with self.path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in state.log_history)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(state.log_history[-1]) + "\n")


class TolerantCallback(TrainerCallback):
    """Another callback, whose failure never ends training: it is said once, then the callback is left out."""

    def __init__(self, inner: TrainerCallback, out: Reporter) -> None:
        self.inner: TrainerCallback | None = inner
        self.out = out

    def tell(self, event: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pass an event on."""
        if self.inner is None:
            return
        try:
            getattr(self.inner, event)(*args, **kwargs)
        except Exception as error:  # of a library, a network or a disk
            name = type(self.inner).__name__.removesuffix("Callback")
            self.inner = None
            self.out.line(f"{name} failed ({type(error).__name__}: {error}) and is left out; training goes on")


def _passing_on(event: str) -> Callable[..., None]:
    def pass_on(self: TolerantCallback, *args: Any, **kwargs: Any) -> None:
        self.tell(event, args, kwargs)

    return pass_on


for _event in dir(TrainerCallback):
    if _event.startswith("on_"):
        setattr(TolerantCallback, _event, _passing_on(_event))


def tolerate_trackers(trainer: Trainer, out: Reporter) -> None:
    """Have neither the log nor a tracker of ``train.hf.report_to`` end training."""

    def may_fail(callback: TrainerCallback) -> bool:
        return isinstance(callback, RunLogCallback) or ".integrations." in type(callback).__module__

    handler = trainer.callback_handler
    handler.callbacks = [
        TolerantCallback(callback, out) if may_fail(callback) else callback for callback in handler.callbacks
    ]


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


def tensorboard_callback(output: Path, out: Reporter) -> TrainerCallback | None:
    """Trainer's TensorBoard callback writing to ``output/tensorboard``; None where it is not installed or fails."""
    from transformers.integrations.integration_utils import TensorBoardCallback, is_tensorboard_available

    if not is_tensorboard_available():  # type: ignore[no-untyped-call]
        return None
    from torch.utils.tensorboard import SummaryWriter

    try:
        return TensorBoardCallback(SummaryWriter(str(output / "tensorboard")))  # type: ignore[no-untyped-call]
    except OSError as error:
        out.line(f"no TensorBoard: {error}")
        return None
