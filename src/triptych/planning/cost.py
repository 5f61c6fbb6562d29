"""What computing a sample costs, estimated from ``config.json`` and the lengths, before torch is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triptych.family.recipe import Recipe
from triptych.family.selectors import PARTS, Part, Place
from triptych.family.shapes import LINEAR, LanguageShape, ModelShapes, VisionShape
from triptych.planning.plan import Lengths

UNIT = 1_000_000
"""FLOPs to one unit of a sample's cost: the costs of a hundred million long samples add up within 64 bits."""


@dataclass(frozen=True, slots=True)
class SampleCost:
    """FLOPs of one forward and backward pass, per unit of what a sample holds.

    An estimate, to compare samples with; `flops.py` counts on the model itself, and a test holds this to it. Adapters,
    norms, biases, convolutions and recurrent states are left out, and so is that features may be stored or activations
    computed twice.
    """

    token: float
    """Language layers, per token"""
    token_pair: float
    """Their attention, per square of a sample's tokens"""
    target: float
    """The head, per supervised token"""
    patch: float
    """Tower and merger, per patch"""
    patch_pair: float
    """The tower's attention, per square of an image's patches"""

    def of(
        self, lengths: Lengths, squared_patches: NDArray[np.float64], supervised: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """(K,) cost of each sample in millions of FLOPs.

        Args:
            lengths: of the K samples.
            squared_patches: (K,) the squares of the patches of each image, summed over the sample's images.
            supervised: (K,) tokens.
        """
        tokens = lengths.tokens.astype(np.float64)
        language = self.token * tokens + self.token_pair * tokens**2 + self.target * supervised
        vision = self.patch * lengths.patches + self.patch_pair * squared_patches
        return np.rint((language + vision) / UNIT).astype(np.int64)


def model_cost(recipe_of: Callable[[Mapping[Part, int]], Recipe], shapes: ModelShapes) -> SampleCost:
    """What a run's samples cost.

    Args:
        recipe_of: gives what learns, for the number of layers of each part.
        shapes: of the model.

    Raises:
        ConfigError: if what is to learn does not fit the model.
    """
    passes = _Passes(recipe_of(shapes.layers), shapes.layers)
    language = shapes.language
    target = 2 * language.vocabulary * language.width * passes.head(tied=language.tied)
    return SampleCost(*_language(language, passes), target, *_vision(shapes.vision, passes))


class _Passes:
    """How often the forward pass's work is done: again for the gradient of inputs, and again for that of weights."""

    def __init__(self, recipe: Recipe, counts: Mapping[Part, int]) -> None:
        self.counts = counts
        self._recipe = recipe
        places = [
            Place(part, layer) for part in PARTS for layer in (range(-1, counts[part] + 1) if counts[part] else (0,))
        ]
        self._lowest = min(_depth(place) for place in places if recipe.learns(place))

    def weights(self, part: Part, layer: int = 0) -> int:
        """Through the weights of a layer: nothing is computed backward below all that learns."""
        place = Place(part, layer)
        # Pixels take no gradient, so below the patch embedding nothing is computed backward.
        inputs = _depth(place) >= self._lowest and _depth(place) > _depth(Place("vision", -1))
        return 1 + inputs + self._recipe.in_full(place)

    def head(self, *, tied: bool) -> int:
        """Through the head, below which something always learns; a tied one learns as the embedding does."""
        layer = -1 if tied else self.counts["language"]
        return 2 + self._recipe.in_full(Place("language", layer))

    def attention(self, part: Part, layers: Iterable[int]) -> int:
        """Through the scores and sums of some layers together; backward there are two of each."""
        return sum(3 if _depth(Place(part, layer)) >= self._lowest else 1 for layer in layers)


def _depth(place: Place) -> tuple[int, int]:
    """Orders places as the data goes through them."""
    return PARTS.index(place.part), place.layer


def _language(text: LanguageShape, passes: _Passes) -> tuple[float, float]:
    """FLOPs per token and per pair of tokens; 2 per weight and pass."""
    mlp = 3 * text.width * text.mlp_width
    token = 2 * sum(
        (_mixer_weights(text, kind) + mlp) * passes.weights("language", layer) for layer, kind in enumerate(text.kinds)
    )
    # Scores and sums take 4 per value, pair and pass; causal attention has half of the pairs.
    token_pair = 2 * text.heads * text.head_width * passes.attention("language", text.attending)
    return token, token_pair


def _mixer_weights(text: LanguageShape, kind: str) -> int:
    """Weights of what mixes the tokens of a language layer, attention or a recurrent state."""
    if kind == LINEAR:
        return text.width * (2 * text.linear_key_width + 3 * text.linear_value_width + 2 * text.linear_value_heads)
    # Beside recurrent layers (Qwen3.5), a gate as wide as the queries goes with attention.
    queries = (3 if text.recurrent else 2) * text.heads
    return text.width * text.head_width * (queries + 2 * text.key_heads)


def _vision(vision: VisionShape, passes: _Passes) -> tuple[float, float]:
    """FLOPs per patch and per pair of patches."""
    merged, width = vision.merge_size**2, vision.width
    block = 4 * width**2 + (3 if vision.gated else 2) * width * vision.mlp_width
    embedding = 3 * vision.temporal_patch_size * vision.patch_size**2 * width
    merger = (1 + vision.taps) * ((width * merged) ** 2 + width * merged * vision.out_width) / merged
    patch = 2 * (
        embedding * passes.weights("vision", -1)
        + block * sum(passes.weights("vision", layer) for layer in range(vision.depth))
        + merger * passes.weights("merger")
    )
    # Where most layers attend within windows, only the others grow with the square.
    return patch, 4 * width * passes.attention("vision", vision.everywhere)
