"""Trainer of transformers, fed with planned rows: loss normalisation, evaluation loss, throughput log."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import EvalLoopOutput

from triptych.errors import DataError, ModelError, Problem
from triptych.forward.batch import Batch
from triptych.forward.flops import FlopCounter, device_peak
from triptych.forward.row_forward import RowForward
from triptych.inference.answering import predict
from triptych.inference.showing import answering
from triptych.model.parts import plain_name
from triptych.recovery import checkpoints, resources
from triptych.recovery.resume import lost_samples
from triptych.run.prepare import REJECTED, append_rejected
from triptych.run.reporter import Reporter
from triptych.run.settings.training import EVAL_LOSS
from triptych.scoring.intervals import mean
from triptych.training.context import TrainingContext
from triptych.training.steps import StepRows
from triptych.training.watch.meters import Meter, SourceLosses, meter_logs, source_names

if TYPE_CHECKING:
    from peft import PeftModel


class RowTrainer(Trainer):
    """Trainer of transformers over planned rows: our loss normalisation, evaluation loss and throughput log."""

    def __init__(
        self,
        *args: Any,
        model: PreTrainedModel | PeftModel,
        context: TrainingContext,
        forward: RowForward,
        rates: Mapping[str, float],
        out: Reporter,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, context.args, *args, data_collator=only_row, **kwargs)  # type: ignore[misc]
        # The loss is divided by the whole step's supervised tokens here, so Trainer must not divide it again.
        self.loss_is_scaled_for_ga = True
        self.forward = forward
        self.forward.normalizer.to(self.args.device)
        self.context = context
        self.settings = context.settings
        self.rates = rates
        self.plan = context.plans["train"]
        self.out = out
        self.start = context.start
        self.output = context.output
        self.lost = set[str]() if self.start.checkpoint is None else lost_samples(self.output)
        """Origins of the samples that were lost during the run"""
        self.stop_asked: str | None = None
        """Name of the signal after which all ranks end with this step"""
        self.by_rows = context.settings.train.average == "rows"
        # The loss of a row is divided by its own targets then, which its parts do not know.
        alone = self.args.world_size == 1 and not self.by_rows
        self.rows = StepRows(self.output, out, self.train_dataset, forward.features, alone=alone)
        """Of the step that is going on"""
        self._seal: checkpoints.Seal | None = None
        """Of the checkpoint that is being written"""
        self.meter = Meter()
        names = source_names([source.path for source in self.settings.data.train])
        self.sources = SourceLosses(names, context.prepared.corpora["train"].sources, self.args.device)
        """What each source gives to the loss"""
        self.counter = FlopCounter(model, context.family, model.config)
        self.peak = device_peak()

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """Take the rows of one optimizer step and sum up the weights of its targets on all ranks, or its rows that have
        any where every row weighs the same."""
        asked = time.perf_counter()
        self.meter.started = self.meter.started or asked
        inputs, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.meter.waited += time.perf_counter() - asked
        batches: list[Batch] = [item["batch"] for item in inputs]
        self._settle(problem for batch in batches for problem in batch.problems)
        for batch in batches:
            self.meter.see(batch)
        self.sources.next_step()
        signalled = self.start.stop.name is not None
        weights = [float(batch.weights.sum(dtype=torch.float64)) for batch in batches]
        items = sum(weight > 0 for weight in weights) if self.by_rows else sum(weights)
        sums = torch.tensor([items, signalled], device=device, dtype=torch.float64)
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums, "sum")
            # A signal reaches ranks at different times; what all of them saw before this step counts.
            self.stop_asked = (self.start.stop.name or "SIGTERM") if sums[1] else None
        return inputs, torch.where(sums[0] > 0, sums[0], 1.0)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Weighted mean of the cross entropy over the targets of the whole step, all ranks and accumulated rows; or the
        mean over its rows of theirs (``train.average``)."""
        summed, losses = self.forward.losses(model, inputs["batch"])
        self.sources.add(inputs["batch"], losses, num_items_in_batch)
        # Gradients are averaged over ranks; the sum is wanted.
        return summed / num_items_in_batch * self.args.world_size

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward of a row; one that does not fit in memory is split into its samples."""
        step, items = super().training_step, torch.as_tensor(num_items_in_batch)
        if self.by_rows:
            items = items * (float(inputs["batch"].weights.sum(dtype=torch.float64)) or 1.0)
        return self.rows.train(
            inputs["batch"],
            lambda batch: step(model, {"batch": batch}, items),
            lambda: self._forget_step(model),
            self.state.global_step + 1,
        )

    def _forget_step(self, model: nn.Module) -> None:
        model.zero_grad()
        self.sources.forget_step()

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The gradient norm; Trainer asks for it once per step, before the weights change.

        Raises:
            DivergedError: if it or a loss is not finite.
        """
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        self.rows.check(norm, self._get_learning_rate(), self.state.global_step + 1)
        return norm

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Weighted mean of the cross entropy over the targets of the eval samples, over all ranks."""
        prefix = kwargs.get("metric_key_prefix", "eval")
        began = time.perf_counter()
        model = self._wrap_model(self.model, training=False)  # type: ignore[arg-type]
        model.eval()
        totals = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        samples = 0
        with self.out.bar("evaluation loss", len(dataloader)) as advance, torch.no_grad():
            for item in dataloader:
                batch: Batch = item["batch"].to(self.args.device)
                self._settle(batch.problems)
                with self.accelerator.autocast():
                    loss = self.rows.evaluate(batch, lambda row: self.forward.summed_loss(model, row))
                totals += torch.stack((loss.double(), batch.weights.sum(dtype=torch.float64)))
                samples += len(batch.samples)
                advance(1)
        totals = self.accelerator.reduce(totals, "sum")
        metrics = {f"{prefix}_loss": (totals[0] / torch.where(totals[1] > 0, totals[1], 1.0)).item()}
        if self.settings.train.metric != EVAL_LOSS:
            metrics[f"{prefix}_{self.settings.train.metric}"] = self._score()
        self.meter.started += time.perf_counter() - began  # evaluation is no part of training's throughput
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=samples)  # type: ignore[arg-type]

    def _score(self) -> float:
        """The mean of ``train.metric`` over the answers to the eval samples; ranks share them."""
        context, metric = self.context, self.settings.train.metric
        model: Any = self.model
        with answering(model, self.forward.attention, context.precision) as ready:
            scored = self.settings.eval.model_copy(update={"scorers": [metric], "by": []})
            settings = self.settings.model_copy(update={"eval": scored})
            answers = predict(settings, context.prepared, ready, self.out)
        found = mean([answer.scores[metric] for answer in answers])
        return 0.0 if found is None else found.value

    def signal_to_stop(self) -> str | None:
        """Name of the signal after which the run ends with this step, on all ranks; None to go on."""
        if self.args.world_size > 1:
            return self.stop_asked
        return self.start.stop.name

    def _get_output_dir(self, trial: Any) -> str:
        """Where Trainer puts checkpoints: aside, while one is being written."""
        return str(self.output if self._seal is None else self._seal.folder.parent)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Trainer's checkpoint, written aside, sealed with checksums, then renamed: it is whole or absent.

        Raises:
            CheckpointError: if it cannot be written; those before it are as they were.
        """
        target = self.output / f"checkpoint-{self.state.global_step}"
        folder = self.output / checkpoints.UNFINISHED / target.name
        if self.args.should_save:
            checkpoints.aside(self.output, target.name)
        self.accelerator.wait_for_everyone()
        self._seal = checkpoints.Seal(folder)
        best = self.state.best_global_step
        try:
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                self._complete(folder, best_step=best)
            self.accelerator.wait_for_everyone()  # every rank has written its random state
            if self.args.should_save:
                self._seal.close()
                checkpoints.publish(folder, target)
                best_folder = self.state.best_model_checkpoint
                keep = self.args.save_total_limit
                checkpoints.remove_old(self.output, keep, Path(best_folder) if best_folder else None)
        except Exception as error:
            shutil.rmtree(folder, ignore_errors=True)  # what a full disk needs first
            text = resources.explain(error, self.output, folder, self._checkpoint_bytes())
            if text is None:
                raise
            raise resources.ResourceError(text) from error
        finally:
            self._seal = None
        self.accelerator.wait_for_everyone()

    def _checkpoint_bytes(self) -> int:
        """About what a checkpoint takes on the disk."""
        model: Any = self.model
        adapters = not isinstance(model, PreTrainedModel)
        weights = sum(p.nbytes for p in model.parameters() if p.requires_grad or not adapters)
        states = [] if self.optimizer is None else self.optimizer.state.values()
        return int(weights) + sum(v.nbytes for state in states for v in state.values() if isinstance(v, torch.Tensor))

    def _complete(self, folder: Path, best_step: int | None) -> None:
        """Add what is Triptych's own: the best checkpoint by the name that it will have, and what was left out."""
        best = self.output / f"checkpoint-{best_step}"
        known = best_step is not None and (best_step == self.state.global_step or best.is_dir())
        self.state.best_model_checkpoint = str(best) if known else None
        self.state.save_to_json(str(folder / "trainer_state.json"))
        if (self.output / REJECTED).exists():
            shutil.copyfile(self.output / REJECTED, folder / REJECTED)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        alone = self._seal is not None and self.args.world_size == 1
        if self._seal is not None and alone:
            self._seal.add()  # the weights are written: their checksums are made meanwhile
        super()._save_optimizer_and_scheduler(output_dir)
        if self._seal is not None and alone:
            self._seal.add()

    def save_final(self, target: Path) -> None:
        """Write the model aside, seal it and give it its name."""
        folder = target.parent / checkpoints.UNFINISHED / target.name
        if self.args.should_save:
            checkpoints.aside(target.parent, target.name)
        self.accelerator.wait_for_everyone()
        self.save_model(str(folder))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoints.Seal(folder).close()
            checkpoints.publish(folder, target)
            checkpoints.clear_unfinished(target.parent)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Also where Triptych's own epochs decide when to save; a new best model is saved whenever it comes."""
        best: bool = super()._determine_best_metric(metrics, trial)
        if best and self.args.load_best_model_at_end:
            self.state.best_global_step = self.state.global_step
            self.control.should_save = True
        return best

    def _load_best_model(self) -> None:
        """The best checkpoint's weights, the same way as a resumed run loads them: Trainer's own way matches no name of
        a whole model's checkpoint, and would keep the last weights.

        Raises:
            ModelError: if the best checkpoint is damaged.
        """
        best = Path(self.state.best_model_checkpoint or "")
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_best_model()
            return
        damage = checkpoints.fault(best)
        if damage is not None:
            raise ModelError(f"the best checkpoint {best} cannot be used: {damage}")
        self._load_from_checkpoint(str(best))
        self.out.line(f"the best model is that of {best}")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The state of optimizer and schedule; learning rate and decay are this start's where they were changed."""
        now = [(group.get("initial_lr"), group.get("weight_decay")) for group in self._groups()]
        super()._load_optimizer_and_scheduler(checkpoint)
        changed = {change.name for change in self.start.changes}
        if checkpoint is None or not changed & {"train.learning_rate", "train.weight_decay"}:
            return
        for group, (rate, decay) in zip(self._groups(), now, strict=True):
            group["weight_decay"] = decay
            group["lr"] *= rate / group["initial_lr"]
            group["initial_lr"] = rate
        schedule: Any = self.lr_scheduler
        schedule.base_lrs = [group["initial_lr"] for group in self._groups()]
        schedule._last_lr = [group["lr"] for group in self._groups()]

    def _groups(self) -> list[dict[str, Any]]:
        return [] if self.optimizer is None else self.optimizer.param_groups

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the weights of a whole-model checkpoint through ``from_pretrained``.

        Checkpoints carry the names of the released weights, which ``from_pretrained`` translates to those of the
        model's modules. Trainer's own way does not (5.23): it would resume from the base model with a warning.
        """
        target = self.model if model is None else model
        if not isinstance(target, PreTrainedModel) or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        # Not "auto": the config names the type of the first weight, which may be a frozen one in 16 bits, and what
        # learns is float32. Loading copies into the type that each weight has here.
        saved = type(target).from_pretrained(resume_from_checkpoint, dtype=torch.float32)
        target.load_state_dict(saved.state_dict(), strict=True)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's optimizer, its groups split where parts or layers have learning rates of their own."""
        created = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if not created or not self.settings.train.part_learning_rates:
            return optimizer
        trained = model if model is not None else self.model
        assert trained is not None
        names = {parameter: plain_name(name) for name, parameter in trained.named_parameters()}
        groups: list[dict[str, Any]] = []
        for group in optimizer.param_groups:
            by_rate: dict[float, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                by_rate.setdefault(self.rates[names[parameter]], []).append(parameter)
            groups += [{**group, "params": params, "lr": rate} for rate, params in by_rate.items()]
        # Trainer logs the rate of the first group: the run's own, where something learns at it.
        optimizer.param_groups = sorted(groups, key=lambda group: bool(group["lr"] != self.args.learning_rate))
        return optimizer

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """FLOPs of a row, counted from its own lengths; Trainer asks after every row."""
        flops = self.counter.row(inputs["batch"]) if self.peak else 0.0
        self.meter.flops += flops
        return int(flops)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add epoch, throughput, fill and waiting to what Trainer logs."""
        if "loss" in logs:
            logs |= self._throughput()
        if self.lost:
            logs["lost_samples"] = len(self.lost)
        rows_done = self.state.global_step * self.settings.train.rows_per_step
        # One pass of Trainer's holds all epochs, so its own epoch would end at 1.
        self.state.epoch = self.plan.epoch_of(min(rows_done, len(self.plan)))
        super().log(logs, start_time)

    def _throughput(self) -> dict[str, float]:
        now = time.perf_counter()
        meter, self.meter = self.meter, Meter(started=now)
        seconds = now - meter.started
        counts = torch.tensor(meter.sums(), device=self.args.device, dtype=torch.float64)
        sums = torch.cat((counts, self.sources.take()))
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums, "sum")
        found = sums.tolist()
        logs = meter_logs(found[: len(counts)], seconds, self.settings.batch.tokens, self.args.world_size)
        if self.forward.features is None:
            del logs["stored_images"]
        if self.peak:
            logs["mfu"] = found[len(counts) - 1] / seconds / (self.peak * self.args.world_size)
        return logs | self.sources.logs(found[len(counts) :])

    def _settle(self, problems: Iterable[Problem]) -> None:
        """What passed the check and broke later: end the run, or go on and say what was lost."""
        found = list(problems)
        if not found:
            return
        if self.settings.data.on_error == "stop":
            raise DataError(found, f"fix the data, {checkpoints.how_to_go_on(self.output)}")
        new = [problem for problem in found if problem.origin.number not in self.lost]
        try:
            append_rejected(self.output, new, step=self.state.global_step)
        except OSError as error:
            self.out.line(f"not in {REJECTED}: {resources.explain(error, self.output) or error}")
        self.lost |= {problem.origin.number for problem in new}
        for problem in new:
            self.out.line(f"lost during training: {problem}")


def only_row(rows: list[Batch]) -> dict[str, Batch]:
    (row,) = rows
    return {"batch": row}
