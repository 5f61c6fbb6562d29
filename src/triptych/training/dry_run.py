"""One row through forward, backward and an optimizer step, to see what it takes."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from triptych.forward.batch import Batch
from triptych.forward.isolation import choose_isolation
from triptych.forward.row_forward import RowForward
from triptych.model.compile import check_compiler, compile_layers
from triptych.model.device import choose_device
from triptych.model.loading import PixelNormalizer, choose_precision
from triptych.run.prepare import Prepared
from triptych.run.settings import RunSettings
from triptych.training.setup import load_for_training


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a row took."""

    device: str
    loss: float
    """Per supervised token."""
    seconds: float
    """Of forward, backward and the optimizer's step, their first time."""
    peak_bytes: int
    note: str


def run_row(settings: RunSettings, prepared: Prepared, batch: Batch) -> DryRun:
    """Train on ``batch`` once, with the run's model, precision and optimizer; nothing is saved.

    Raises:
        torch.OutOfMemoryError: if it does not fit.
        ModelError: if the weights cannot be loaded.
    """
    device = choose_device()
    precision = choose_precision(settings.model)
    isolation = choose_isolation(prepared.files.family, device)
    checkpointing = settings.train.gradient_checkpointing
    model, attention = load_for_training(
        settings.model,
        prepared.files.family,
        precision,
        device,
        isolation,
        checkpointing=checkpointing,
        shares=batch.paths.shared,
    )
    model.config.use_cache = False
    if settings.train.compile:
        check_compiler(device)
        compile_layers(model, prepared.files.family)
    model.to(device).train()  # type: ignore[arg-type]
    normalizer = PixelNormalizer(prepared.files).to(device)
    forward = RowForward(normalizer, isolation, attention, logits_limit=settings.train.logits_bytes)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=settings.train.learning_rate)
    began = time.perf_counter()
    moved = batch.to(device)
    with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
        loss = forward.summed_loss(model, moved) / batch.weights.sum().item()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    value = loss.item()  # waits for the device
    seconds = time.perf_counter() - began
    if device.type == "cuda":
        peak, name, note = torch.cuda.max_memory_allocated(), torch.cuda.get_device_name(), ""
    else:
        # Linux counts in KiB.
        import resource  # Unix only

        peak, name, note = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "the CPU", " (whole process)"
    return DryRun(name, value, seconds, peak, note)
