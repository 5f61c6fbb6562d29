"""What happens beside the training loop: epoch ends, console lines, the run's log file, TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from triptych.planning.plan import Plan
from triptych.recovery.stopping import Stopped
from triptych.run import console
from triptych.run.settings import RunSettings

LOG = "log.jsonl"


class EpochCallback(TrainerCallback):
    """Saves and evaluates where an epoch of the plan ends; to Trainer the whole plan is one pass."""

    def __init__(self, settings: RunSettings, plan: Plan) -> None:
        self.save = settings.train.save_every == "epoch"
        self.evaluate = settings.train.eval_every == "epoch" and bool(settings.data.eval)
        rows = settings.train.rows_per_step
        self.ends = {-(-int(bound) // rows) for bound in plan.epoch_bounds[1:]}

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
    """Keeps ``log.jsonl``, one object per report; a resumed run goes on where its checkpoint was written."""

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


class ConsoleCallback(TrainerCallback):
    """A progress bar on a terminal, a line per report everywhere."""

    def __init__(self, out: Console) -> None:
        self.out = out
        self.progress: Progress | None = None
        self.task: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self.out.is_terminal:
            return
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=self.out)
        self.task = self.progress.add_task("training", total=state.max_steps, completed=state.global_step)
        self.progress.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.progress is not None:
            self.progress.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and ("loss" in logs or "eval_loss" in logs):
            self.out.print(console.log_line(logs, state.global_step, state.max_steps), markup=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the progress bar away, also where training ended early."""
        if self.progress is not None:
            self.progress.stop()


def tensorboard_callback(output: Path) -> TrainerCallback | None:
    """Trainer's TensorBoard callback writing to ``output/tensorboard``; None where tensorboard is not installed."""
    from transformers.integrations.integration_utils import TensorBoardCallback, is_tensorboard_available

    if not is_tensorboard_available():  # type: ignore[no-untyped-call]
        return None
    from torch.utils.tensorboard import SummaryWriter

    return TensorBoardCallback(SummaryWriter(str(output / "tensorboard")))  # type: ignore[no-untyped-call]
