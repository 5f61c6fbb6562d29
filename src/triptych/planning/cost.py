"""What computing a sample costs, estimated from ``config.json`` and the lengths, before torch is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.family.recipe import Recipe, layer_counts
from triptych.family.selectors import PARTS, Part, Place
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


def model_cost(recipe_of: Callable[[Mapping[Part, int]], Recipe], config: Mapping[str, Any]) -> SampleCost | None:
    """What a run's samples cost by the content of ``config.json``; None if that does not give the model's shapes.

    Args:
        recipe_of: gives what learns, for the number of layers of each part.
        config: the content of ``config.json``.

    Raises:
        ConfigError: if what is to learn does not fit the model.
    """
    counts = layer_counts(config)
    if counts is None:
        return None
    passes = _Passes(recipe_of(counts), counts)
    try:
        text = config.get("text_config") or config
        token, token_pair = _language(text, passes)
        tied = config.get("tie_word_embeddings") or text.get("tie_word_embeddings")
        target = 2 * text["vocab_size"] * text["hidden_size"] * passes.head(tied=bool(tied))
        patch, patch_pair = _vision(config["vision_config"], passes)
    except KeyError:
        return None
    return SampleCost(token, token_pair, target, patch, patch_pair)


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


def _language(text: Mapping[str, Any], passes: _Passes) -> tuple[float, float]:
    """FLOPs per token and per pair of tokens; 2 per weight and pass."""
    width = text["hidden_size"]
    kinds: Sequence[str] = text.get("layer_types") or ["full_attention"] * passes.counts["language"]
    mlp = 3 * width * _mlp_width(text)
    token = 2 * sum(
        (_mixer_weights(text, kind, gated="linear_attention" in kinds) + mlp) * passes.weights("language", layer)
        for layer, kind in enumerate(kinds)
    )
    attending = [layer for layer, kind in enumerate(kinds) if kind != "linear_attention"]
    heads = text["num_attention_heads"]
    # Scores and sums take 4 per value, pair and pass; causal attention has half of the pairs.
    token_pair = 2 * heads * _head_dim(text) * passes.attention("language", attending)
    return token, token_pair


def _mixer_weights(text: Mapping[str, Any], kind: str, *, gated: bool) -> int:
    """Weights of what mixes the tokens of a language layer, attention or a recurrent state."""
    width = text["hidden_size"]
    if kind == "linear_attention":
        keys = text["linear_num_key_heads"] * text["linear_key_head_dim"]
        values = text["linear_num_value_heads"] * text["linear_value_head_dim"]
        return int(width * (2 * keys + 3 * values + 2 * text["linear_num_value_heads"]))
    queries, shared = text["num_attention_heads"], text["num_key_value_heads"]
    # Beside recurrent layers (Qwen3.5), a gate as wide as the queries goes with attention.
    return int(width * _head_dim(text) * ((3 if gated else 2) * queries + 2 * shared))


def _head_dim(text: Mapping[str, Any]) -> int:
    return int(text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"])


def _mlp_width(text: Mapping[str, Any]) -> int:
    """Width of the MLP as one token meets it: of a mixture, its active experts together."""
    experts = text.get("num_experts_per_tok") or 0
    if not experts:
        return int(text["intermediate_size"])
    return int(text["moe_intermediate_size"] * experts + (text.get("shared_expert_intermediate_size") or 0))


def _vision(vision: Mapping[str, Any], passes: _Passes) -> tuple[float, float]:
    """FLOPs per patch and per pair of patches."""
    depth, merged = passes.counts["vision"], vision["spatial_merge_size"] ** 2
    # Qwen2-VL calls the tower's width embed_dim, and hidden_size what leaves the merger.
    width = vision.get("embed_dim") or vision["hidden_size"]
    out = vision.get("out_hidden_size") or vision["hidden_size"]
    inner = vision.get("intermediate_size") or int(width * vision["mlp_ratio"])
    matrices = 3 if vision.get("hidden_act") == "silu" else 2  # Qwen2.5-VL's is gated
    block = 4 * width**2 + matrices * width * inner
    embedding = 3 * vision["temporal_patch_size"] * vision["patch_size"] ** 2 * width
    mergers = 1 + len(vision.get("deepstack_visual_indexes") or ())
    merger = mergers * ((width * merged) ** 2 + width * merged * out) / merged
    patch = 2 * (
        embedding * passes.weights("vision", -1)
        + block * sum(passes.weights("vision", layer) for layer in range(depth))
        + merger * passes.weights("merger")
    )
    # Where most layers attend within windows, only the others grow with the square.
    everywhere = vision.get("fullatt_block_indexes") or range(depth)
    return patch, 4 * width * passes.attention("vision", everywhere)
