"""Samples of a run's own data, and what a model says of them: its logits, and an answer about images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from triptych.corpus.corpus import Corpus
from triptych.errors import DataError
from triptych.exporting.claims import Expected
from triptych.family.family import ModelFiles
from triptych.forward.batch import Batch, build_batch
from triptych.forward.isolation import choose_isolation
from triptych.forward.row_forward import RowForward
from triptych.inference.answering import PromptDataset
from triptych.inference.generate import Prompt, answer
from triptych.model.device import choose_device
from triptych.model.loading import PixelNormalizer
from triptych.model.trained import as_trained, perturb
from triptych.run.settings import ModelSettings
from triptych.text.template import Template

SEED = 0
ROOM = 1.3
"""Memory to compute with, times that of the weights."""


class ProofSamples:
    """A few samples, decoded once, about which models are asked."""

    def __init__(
        self,
        corpus: Corpus,
        template: Template,
        files: ModelFiles,
        *,
        samples: int,
        max_new_tokens: int,
        device: torch.device,
    ) -> None:
        """
        Args:
            corpus: where the samples come from, evenly spread over those with images, if any has one.
            template: the model's markup.
            files: the model's small files.
            samples: how many.
            max_new_tokens: length at which the answer is cut off.
            device: to ask on; see ``roomy_device``.

        Raises:
            DataError: if an image of them no longer decodes.
        """
        self.device = device
        self.template = template
        self.max_new_tokens = max_new_tokens
        self.normalizer = PixelNormalizer(files).to(self.device)
        self.forward = RowForward(self.normalizer, choose_isolation(files.family, self.device))
        indices = spread(corpus, samples)
        self.origins = tuple(str(corpus.origin(index)) for index in indices)
        self.batches = [self._batch(corpus, index) for index in indices]
        # The sample with most images is the one to answer.
        asked = max(indices, key=lambda index: int(corpus.image_counts[index]))
        prompt = PromptDataset(corpus, template, [asked])[0]
        if not isinstance(prompt, Prompt):
            raise DataError(prompt)
        self.prompt = prompt
        self.asked = f"{corpus.origin(asked)}: {template.readable(template.split_answer(corpus.encoded(asked))[0])}"

    def _batch(self, corpus: Corpus, index: int) -> Batch:
        batch = build_batch(corpus, [index], filler=self.template.filler())
        if batch.problems:
            raise DataError(batch.problems, "the proof needs this image; restore it")
        return batch.to(self.device)

    @torch.inference_mode()
    def logits(self, model: nn.Module, precision: torch.dtype | None = None) -> list[torch.Tensor]:
        """Logits (S, V) of each sample at its supervised positions, float32, on the CPU.

        Args:
            model: on ``device``.
            precision: of the arithmetic under autocast, as in training; None for the model's own.
        """
        mixed = precision is not None and precision is not torch.float32
        with torch.autocast(self.device.type, precision, enabled=mixed):
            return [self.forward.logits(model, batch).float().cpu() for batch in self.batches]

    def answer(self, model: PreTrainedModel) -> str:
        """The likeliest answer to the sample with most images."""
        (written,) = answer(model, [self.prompt], self.template, self.normalizer, max_new_tokens=self.max_new_tokens)
        return self.template.decode(written.ids)

    def ask(self, model: PreTrainedModel) -> tuple[list[torch.Tensor], str]:
        """Logits and answer of a model that lies in main memory."""
        model.to(self.device)  # type: ignore[arg-type]  # decorated without its types in transformers
        said = self.logits(model), self.answer(model)
        model.to("cpu")  # type: ignore[arg-type]
        return said

    def expected(
        self, settings: ModelSettings, folder: Path, files: ModelFiles, precision: torch.dtype, dtype: torch.dtype
    ) -> Expected:
        """What the trainer's model says, and how far the rounding of ``dtype`` takes it; see ``Expected``.

        Raises:
            ModelError: if the model cannot be loaded.
        """
        model = as_trained(settings, folder, files.family, precision).to(self.device)  # type: ignore[arg-type]
        trained = self.logits(model, precision)
        perturb(model, dtype, SEED)
        moved = self.logits(model)
        rounding = max((a - b).abs().max().item() for a, b in zip(trained, moved, strict=True))
        exact = precision is torch.float32 and dtype is torch.float32
        return Expected(self.origins, tuple(trained), rounding, exact)


def roomy_device(weights: int) -> torch.device:
    """The GPU, if a model of so many weights fits there in float32 with room to compute; else the CPU."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        if weights * torch.float32.itemsize * ROOM < free:
            return choose_device()
    return torch.device("cpu")


def spread(corpus: Corpus, samples: int) -> Sequence[int]:
    """Numbers of samples, evenly spread over those with images; over all, where none has one."""
    pool = np.flatnonzero(corpus.image_counts)
    pool = pool if len(pool) else np.arange(len(corpus))
    chosen: list[int] = pool[np.unique(np.linspace(0, len(pool) - 1, samples).round().astype(int))].tolist()
    return chosen
