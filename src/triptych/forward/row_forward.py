"""The loss of a row: cross entropy summed over its supervised tokens, through the model's own forward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn

from triptych.forward import head_loss
from triptych.forward.attention import MASKED_SDPA, Attention
from triptych.forward.batch import Batch, end_to_end
from triptych.forward.feature_cache import FeatureCache, image_features
from triptych.forward.isolation import PACKED, Isolation
from triptych.model.loading import PixelNormalizer


@dataclass(frozen=True, slots=True)
class RowForward:
    """How the rows of a run go through its model."""

    normalizer: PixelNormalizer
    isolation: Isolation = PACKED
    attention: Attention = MASKED_SDPA
    """As installed in the model."""
    features: FeatureCache | None = None
    """Makes what the store of image features lacks; None where the tower sees every image of every row."""
    logits_limit: int | None = None
    """Bytes of the largest logits tensor of a loss; None for what suits the device."""

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Logits (S, V) at the positions whose next token is a target; no other position reaches the vocabulary."""
        logits = []
        for row in self._rows(batch):
            with _each_image_once(model, row):
                logits.append(model(**self._inputs(row)).logits.flatten(0, -2))
        return torch.cat(logits)

    def summed_loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The first value of ``losses``."""
        return self.losses(model, batch)[0]

    def losses(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross entropy times weight, summed over the row's S supervised tokens, in float32; 0 for a row without any.

        The caller divides by the weights of the whole optimizer step, on all ranks: every token then counts by its
        weight, however the samples fell into rows. Logits are there for some tokens at a time (``logits_limit``).

        Returns:
            The sum, and (S,) the cross entropy of each token, neither weighted nor part of the graph.
        """
        limit = self.logits_limit or head_loss.default_limit(batch.input_ids.device)
        losses, each = [], []
        for row in self._rows(batch):
            with _each_image_once(model, row):
                loss, of_targets = head_loss.summed_loss(model, self._inputs(row), row.targets, row.weights, limit)
            losses.append(loss)
            each.append(of_targets)
        return torch.stack(losses).sum(), torch.cat(each)

    def _rows(self, batch: Batch) -> Iterable[Batch]:
        """What goes through the model at once."""
        if self.features is not None:
            batch = self.features.complete(batch)
        return [batch] if self.isolation.packs else batch.unpack()

    @torch.no_grad()
    def leakage(self, model: nn.Module, vocabulary: int, device: torch.device) -> float:
        """How far samples of a packed row see each other: how much the logits of the second of two short texts differ
        from those of the same text alone, relative to their size. 0 but for rounding where they do not."""
        row = _two_texts(vocabulary).to(device)
        second = list(row.unpack())[1]
        found = self.logits(model, row)[-len(second.targets) :].float()
        expected = self.logits(model, second).float()
        return float((found - expected).norm() / expected.norm())

    def _inputs(self, row: Batch) -> dict[str, Any]:
        inputs = {
            "input_ids": row.input_ids,
            "position_ids": row.position_ids,
            "logits_to_keep": row.logits_to_keep,
            "use_cache": False,
        }
        if len(row.image_grid_thw) and row.features is not None:
            inputs["mm_encoder_outputs"] = {"image": image_features(row.features)}
        elif len(row.image_grid_thw):
            inputs |= {"pixel_values": self.normalizer.repeated(row.pixels), "image_grid_thw": row.image_grid_thw}
        return inputs | self.isolation.arguments(row) | self.attention.arguments(row)


@contextmanager
def _each_image_once(model: nn.Module, row: Batch) -> Iterator[None]:
    """Let the vision tower see each image of ``row.pixels`` once while this lasts, through torch's own hooks, and the
    model get the features of all N images that the row shows.
    """
    shown = row.shown
    if shown is None:
        yield
        return
    bare = extract_model_from_parallel(model)
    base: Any = bare.get_base_model() if hasattr(bare, "get_base_model") else bare
    merged, tower = base.config.vision_config.spatial_merge_size**2, base.model.visual
    grids = row.image_grid_thw[list(row.decoded)]

    def take(_tower: nn.Module, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return arguments, named | {"grid_thw": grids}

    def give(_tower: nn.Module, _arguments: Any, output: Any) -> Any:
        tokens = [row.image_patches[image] // merged for image in row.decoded]
        output.pooler_output = _repeat(output.pooler_output, tokens, shown)
        levels = getattr(output, "deepstack_features", None)
        if levels is not None:
            output.deepstack_features = [_repeat(level, tokens, shown) for level in levels]
        return output

    handles = tower.register_forward_pre_hook(take, with_kwargs=True), tower.register_forward_hook(give)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _repeat(features: torch.Tensor, tokens: Sequence[int], shown: Sequence[int]) -> torch.Tensor:
    """Features of the images that are shown, of those of each image."""
    each = torch.split(features, list(tokens))
    return torch.cat([each[image] for image in shown])


def _two_texts(vocabulary: int) -> Batch:
    """A row of two samples of random ids, every token but their first a target."""
    lengths = (24, 12)
    ids = torch.randint(vocabulary, (1, sum(lengths)), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(length) for length in lengths])
    targets = torch.tensor([position for position in range(1, sum(lengths)) if position != lengths[0]])
    return Batch(
        input_ids=ids,
        position_ids=positions.expand(4, 1, -1),
        pixels=torch.empty(0, 0, dtype=torch.uint8),
        image_grid_thw=torch.empty(0, 3, dtype=torch.long),
        logits_to_keep=targets - 1,
        targets=ids[0, targets],
        weights=torch.ones(len(targets)),
        cu_seqlens=torch.tensor([0, lengths[0], sum(lengths)], dtype=torch.int32),
        paths=end_to_end(lengths, [torch.arange(length - 1) for length in lengths], (0, 0)),
        image_patches=(),
        samples=(0, 1),
        problems=(),
    )
