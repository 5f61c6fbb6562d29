"""The loss of a row: cross entropy summed over its supervised tokens, through the model's own forward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

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
        whole = self._whole(batch)
        tower, logits = RowTower(model, self.normalizer, whole), []
        for row, images in self._parts(whole):
            with tower.showing(images, self._inputs(row)) as inputs:
                logits.append(model(**inputs).logits.flatten(0, -2))
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
        whole = self._whole(batch)
        tower, losses, each = RowTower(model, self.normalizer, whole), [], []
        for row, images in self._parts(whole):
            with tower.showing(images, self._inputs(row)) as inputs:
                loss, of_targets = _head_loss(model, inputs, row, limit)
            losses.append(loss)
            each.append(of_targets)
        return torch.stack(losses).sum(), torch.cat(each)

    def _whole(self, batch: Batch) -> Batch:
        """The row, in a run that keeps features with those of all its images."""
        return batch if self.features is None else self.features.complete(batch)

    def _parts(self, batch: Batch) -> Iterable[tuple[Batch, Sequence[int]]]:
        """What goes through the model at once, and which images of the row that shows."""
        if self.isolation.packs:
            return [(batch, range(len(batch.image_patches)))]
        return zip(batch.unpack(), batch.paths.images, strict=True)

    @torch.no_grad()
    def leakage(self, model: nn.Module, vocabulary: int, device: torch.device, *, shared: bool = False) -> float:
        """How far samples of a packed row see each other: how much the logits of the second of two short texts differ
        from those of the same text alone, relative to their size. 0 but for rounding where they do not.

        With ``shared``, the texts begin alike, and the row holds that once.
        """
        row = _two_texts(vocabulary, shared=8 if shared else 0).to(device)
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


def _head_loss(model: nn.Module, inputs: dict[str, Any], row: Batch, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``head_loss.summed_loss`` of a row, a target that several samples share computed once."""
    found = row.distinct
    if found is None:
        return head_loss.summed_loss(model, inputs, row.targets, row.weights, limit)
    inputs = inputs | {"logits_to_keep": found.logits_to_keep}
    loss, each = head_loss.summed_loss(model, inputs, found.targets, found.sums(row.weights), limit)
    return loss, each[found.numbers]


PIXEL_INPUTS = ("pixel_values", "image_grid_thw")


class RowTower:
    """Lets the vision tower of a model see each image of a row once, though the row shows some several times.

    It sees them within the first forward that shows any, through torch's own hooks, so that wrappers of ranks know of
    it; where samples go through the model one by one, later forwards are given its features.
    """

    def __init__(self, model: nn.Module, normalizer: PixelNormalizer, row: Batch) -> None:
        """
        Args:
            model: as transformers, peft or accelerate made it.
            normalizer: bytes to the tower's input.
            row: all of it, whatever goes through the model at once.
        """
        self._row = row
        self._normalizer = normalizer
        self._levels: list[tuple[torch.Tensor, ...]] = []
        """Features of each image in ``row.pixels``: what leaves the merger, then those of DeepStack"""
        bare = extract_model_from_parallel(model)
        self._base: Any = bare.get_base_model() if hasattr(bare, "get_base_model") else bare

    @contextmanager
    def showing(self, images: Sequence[int], inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """What a forward takes that shows these of the row's N images, of what it would take alone."""
        row = self._row
        if row.shown is None or not images:
            yield inputs
            return
        shown = [row.shown[image] for image in images]
        if self._levels:
            levels: list[Any] = [tuple(level[image] for image in shown) for level in self._levels]
            known = BaseModelOutputWithDeepstackFeatures(pooler_output=levels[0], deepstack_features=levels[1:])
            kept = {name: value for name, value in inputs.items() if name not in PIXEL_INPUTS}
            yield kept | {"mm_encoder_outputs": {"image": known}}
            return
        hooks = self._take, partial(self._give, shown)
        tower = self._base.model.visual
        handles = tower.register_forward_pre_hook(hooks[0], with_kwargs=True), tower.register_forward_hook(hooks[1])
        inputs = inputs | {"pixel_values": self._normalizer.repeated(row.pixels)}
        try:
            yield inputs
        finally:
            for handle in handles:
                handle.remove()

    def _take(self, _tower: nn.Module, pixels: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The grids of all images of the row, each once, which the pixels are."""
        return pixels, named | {"grid_thw": self._row.image_grid_thw[list(self._row.decoded)]}

    def _give(self, shown: Sequence[int], _tower: nn.Module, _pixels: Any, output: Any) -> Any:
        """The features of the images that are shown; the others' are kept."""
        merged = self._base.config.vision_config.spatial_merge_size**2
        tokens = [self._row.image_patches[image] // merged for image in self._row.decoded]
        found = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
        self._levels = [torch.split(level, tokens) for level in found]
        levels = [torch.cat([level[image] for image in shown]) for level in self._levels]
        output.pooler_output = levels[0]
        if len(levels) > 1:
            output.deepstack_features = levels[1:]
        return output


def _two_texts(vocabulary: int, *, shared: int) -> Batch:
    """A row of two samples of random ids that share as many tokens, every token but their first a target."""
    first, second, tokens = 24, 12, 36 - shared
    ids = torch.randint(vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0))
    places = [torch.arange(first), torch.cat((torch.arange(shared), torch.arange(first, tokens)))]
    kept = [torch.arange(len(part) - 1) for part in places]
    return Batch(
        input_ids=ids,
        position_ids=torch.cat((torch.arange(first), torch.arange(shared, second))).expand(4, 1, -1),
        pixels=torch.empty(0, 0, dtype=torch.uint8),
        image_grid_thw=torch.empty(0, 3, dtype=torch.long),
        logits_to_keep=torch.cat([part[:-1] for part in places]),
        targets=torch.cat([ids[0, part[1:]] for part in places]),
        weights=torch.ones(first + second - 2),
        cu_seqlens=torch.tensor([0, first, tokens], dtype=torch.int32),
        paths=replace(
            end_to_end((first, second), kept, (0, 0)), tokens=torch.cat(places), own=(first, second - shared)
        ),
        image_patches=(),
        samples=(0, 1),
        problems=(),
    )
