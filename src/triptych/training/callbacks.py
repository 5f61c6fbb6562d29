"""What decides beside the training loop: where epochs end, when to stop after a signal, when patience is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from triptych.planning.plan import Plan
from triptych.recovery.stopping import Stopped
from triptych.run.reporter import Reporter
from triptych.run.settings import RunSettings
from triptych.run.settings.training import EVAL_LOSS


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


class PatienceCallback(TrainerCallback):
    """Ends training after so many evaluations without a better score, counted in the log: a resumed run goes on."""

    def __init__(self, settings: RunSettings, out: Reporter) -> None:
        train = settings.train
        self.patience = train.patience
        self.key = train.metric if train.metric == EVAL_LOSS else f"eval_{train.metric}"
        self.sign = -1 if train.metric == EVAL_LOSS else 1
        self.out = out

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        values = [self.sign * entry[self.key] for entry in state.log_history if self.key in entry]
        if self.patience is not None and values:
            since = len(values) - 1 - values.index(max(values))
            if since >= self.patience:
                if state.is_world_process_zero:
                    self.out.line(f"{since} evaluations without a better {self.key}: training ends (train.patience)")
                control.should_training_stop = True
        return control
