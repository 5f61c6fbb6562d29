"""The run's log file and trackers, TensorBoard among them: none of them ends training when it fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from triptych.reports.history import LOG
from triptych.run.reporter import Reporter
from triptych.training.watch.live_callback import LiveCallback


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
        return isinstance(callback, (RunLogCallback, LiveCallback)) or ".integrations." in type(callback).__module__

    handler = trainer.callback_handler
    handler.callbacks = [
        TolerantCallback(callback, out) if may_fail(callback) else callback for callback in handler.callbacks
    ]


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
