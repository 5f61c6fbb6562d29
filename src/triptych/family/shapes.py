"""How wide and deep a model is, read from ``config.json``: the one owner of these numbers, with each family's defaults.

transformers leaves keys out of ``config.json`` that equal its classes' defaults; which, depends on its release. So a
key that is absent means the default of the family's class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from triptych.errors import ModelError
from triptych.family.selectors import Part

LINEAR, FULL, SLIDING = "linear_attention", "full_attention", "sliding_attention"
"""Kinds of language layers: a state that is carried from token to token; attention over all tokens, or a window."""
INDEXED = "indexed_attention"
"""Attention over the tokens that an index chooses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageShape:
    """The language model."""

    width: int
    """Values of a token between layers"""
    kinds: tuple[str, ...]
    """Of each layer: ``LINEAR``, ``FULL``, ``SLIDING`` or ``INDEXED``"""
    heads: int
    key_heads: int
    """Heads of keys and values, which several query heads may share"""
    head_width: int
    dense_mlp: int
    """Width of a layer's MLP where it is no mixture of experts; 0 where all are mixtures"""
    expert_mlp: int
    """Width of one expert"""
    shared_mlp: int
    """Width of the expert that every token goes through; 0 without one"""
    experts: int
    """Experts of a layer; 0 for a dense model"""
    experts_per_token: int
    """Experts that a token goes through; 0 for a dense model"""
    linear_key_width: int
    """Width of the keys of a ``LINEAR`` layer, all heads together"""
    linear_key_heads: int
    linear_value_width: int
    linear_value_heads: int
    vocabulary: int
    """Rows of the embedding"""
    tied: bool
    """Whether the head's weights are the embedding's"""
    positions: int
    """Longest sequence that was meant, tokens"""
    attention_dropout: float
    """Of the scores of attention; no released model has any"""

    @property
    def layers(self) -> int:
        return len(self.kinds)

    @property
    def attending(self) -> tuple[int, ...]:
        """Numbers of the layers whose work grows with the square of the length."""
        return tuple(number for number, kind in enumerate(self.kinds) if kind != LINEAR)

    @property
    def recurrent(self) -> bool:
        return LINEAR in self.kinds

    @property
    def mlp_width(self) -> int:
        """Width of a layer's MLP as one token meets it: of a mixture, its active experts together."""
        return self.expert_mlp * self.experts_per_token + self.shared_mlp if self.experts else self.dense_mlp


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionShape:
    """The vision tower and its merger."""

    width: int
    """Values of a patch between layers"""
    depth: int
    """Layers"""
    heads: int
    mlp_width: int
    gated: bool
    """Whether the MLP has a gate: three matrices instead of two"""
    patch_size: int
    """px"""
    merge_size: int
    """Patches of a language token, in each direction"""
    temporal_patch_size: int
    """Frames of a patch"""
    out_width: int
    """Values of a token that leaves the merger"""
    taps: int
    """Inner layers whose output also goes into the language model (DeepStack)"""
    everywhere: tuple[int, ...]
    """Layers that attend to the whole image; the others attend within windows"""

    @property
    def head_width(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True, slots=True)
class ModelShapes:
    """A model's numbers."""

    language: LanguageShape
    vision: VisionShape

    @property
    def layers(self) -> dict[Part, int]:
        """Layers of every part; a merger has none that run one after another."""
        return {"vision": self.vision.depth, "merger": 0, "language": self.language.layers}


SPELLINGS = {"num_local_experts": "num_experts"}
"""Other names of keys in released files."""

INDEXING = ("qwen4_exp",)
"""Families whose attention is over the tokens that an index chooses; their files call it full."""
TIED_INSIDE = ("qwen2_vl", "qwen2_5_vl")
"""Families whose older files say among the language model's values that the head is tied."""

_QWEN2_TEXT: dict[str, Any] = {
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "max_window_layers": 80,
}
_QWEN3_VISION: dict[str, Any] = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "patch_size": 16,
    "out_hidden_size": 3584,
}
_DEEPSTACK: dict[str, Any] = {**_QWEN3_VISION, "deepstack_visual_indexes": [8, 16, 24]}
_QWEN3_5_TEXT: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 128,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "vocab_size": 248320,
    "max_position_embeddings": 32768,
    "full_attention_interval": 4,
}
_QWEN3_5_MOE_TEXT: dict[str, Any] = {
    **_QWEN3_5_TEXT,
    "hidden_size": 2048,
    "intermediate_size": 0,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}

# `model_type` -> defaults of transformers' classes, of the language model and of the tower; a test compares them.
DEFAULTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen2_vl": (
        _QWEN2_TEXT,
        {
            "depth": 32,
            "embed_dim": 1280,
            "hidden_size": 3584,
            "mlp_ratio": 4,
            "num_heads": 16,
            "hidden_act": "quick_gelu",
            "patch_size": 14,
        },
    ),
    "qwen2_5_vl": (
        _QWEN2_TEXT,
        {
            "depth": 32,
            "hidden_size": 3584,
            "intermediate_size": 3420,
            "num_heads": 16,
            "hidden_act": "silu",
            "patch_size": 14,
            "out_hidden_size": 3584,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    ),
    "qwen3_vl": (
        {
            "hidden_size": 4096,
            "intermediate_size": 22016,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "vocab_size": 151936,
            "max_position_embeddings": 128000,
        },
        _DEEPSTACK,
    ),
    "qwen3_vl_moe": (
        {
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "head_dim": 128,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "vocab_size": 151936,
            "max_position_embeddings": 128000,
        },
        _DEEPSTACK,
    ),
    "qwen3_5": (_QWEN3_5_TEXT, _QWEN3_VISION),
    "qwen3_5_moe": (_QWEN3_5_MOE_TEXT, _QWEN3_VISION),
    "qwen4_exp": ({**_QWEN3_5_MOE_TEXT, "num_experts": 512, "num_experts_per_tok": 10}, _QWEN3_VISION),
}


def read_shapes(config: Mapping[str, Any], model_type: str | None = None) -> ModelShapes:
    """The shapes of a model.

    Args:
        config: content of ``config.json``, or of a config of transformers as a dict.
        model_type: the family, where it is not the one that ``config`` names.

    Raises:
        ModelError: if a value is of the wrong type.
    """
    family = model_type or config["model_type"]
    text, vision = DEFAULTS[family]
    # Older files hold the language model's values among those of the whole.
    outer = config if config.get("text_config") is None else config["text_config"]
    own_vision = config.get("vision_config")
    places = (config, outer) if family in TIED_INSIDE and isinstance(outer, Mapping) else (config,)
    tied = any(found.get("tie_word_embeddings") is True for found in places)
    return ModelShapes(
        _language(_Values(outer, text, "text_config"), tied=tied, attention=INDEXED if family in INDEXING else FULL),
        _vision(_Values({} if own_vision is None else own_vision, vision, "vision_config")),
    )


class _Values:
    """A group of ``config.json`` over the family's defaults; null is as good as absent."""

    def __init__(self, found: Any, defaults: Mapping[str, Any], group: str) -> None:
        if not isinstance(found, Mapping):
            raise ModelError(f"config.json: {group} is {found!r}, not a group of values")
        given: dict[str, Any] = {
            SPELLINGS.get(str(name), str(name)): value for name, value in found.items() if value is not None
        }
        self._all: dict[str, Any] = {**defaults, **given}
        self._group = group

    def number(self, name: str, absent: int = 0) -> int:
        value = self._all.get(name, absent)
        if isinstance(value, list | tuple) and len(set(value)) == 1:  # patch sizes may be one for each direction
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
            raise ModelError(f"config.json: {self._group}.{name} is {value!r}, not a whole number")
        return int(value)

    def positive(self, name: str, absent: int = 0) -> int:
        value = self.number(name, absent)
        if value < 1:
            raise ModelError(f"config.json: {self._group}.{name} is {value}; it must be at least 1")
        return value

    def share(self, name: str) -> float:
        value = self._all.get(name, 0.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise ModelError(f"config.json: {self._group}.{name} is {value!r}, not a share of 1")
        return float(value)

    def items(self, name: str) -> tuple[Any, ...] | None:
        value = self._all.get(name)
        if value is not None and not isinstance(value, list | tuple):
            raise ModelError(f"config.json: {self._group}.{name} is {value!r}, not a list")
        return None if value is None else tuple(value)

    def word(self, name: str) -> str:
        return str(self._all.get(name, ""))


def _language(text: _Values, *, tied: bool, attention: str) -> LanguageShape:
    heads, width = text.positive("num_attention_heads"), text.positive("hidden_size")
    experts = text.number("num_experts")
    return LanguageShape(
        width=width,
        kinds=tuple(attention if kind == FULL else kind for kind in _kinds(text)),
        heads=heads,
        key_heads=text.number("num_key_value_heads") or heads,
        head_width=text.number("head_dim") or width // heads,
        dense_mlp=text.number("intermediate_size"),
        expert_mlp=text.number("moe_intermediate_size"),
        shared_mlp=text.number("shared_expert_intermediate_size"),
        experts=experts,
        experts_per_token=text.number("num_experts_per_tok") if experts else 0,
        linear_key_width=text.number("linear_num_key_heads") * text.number("linear_key_head_dim"),
        linear_key_heads=text.number("linear_num_key_heads"),
        linear_value_width=text.number("linear_num_value_heads") * text.number("linear_value_head_dim"),
        linear_value_heads=text.number("linear_num_value_heads"),
        vocabulary=text.positive("vocab_size"),
        tied=tied,
        positions=text.number("max_position_embeddings"),
        attention_dropout=text.share("attention_dropout"),
    )


def _kinds(text: _Values) -> tuple[str, ...]:
    layers, named = text.positive("num_hidden_layers"), text.items("layer_types")
    if named is not None:
        if len(named) != layers:
            raise ModelError(f"config.json: text_config.layer_types names {len(named)} layers of {layers}")
        return tuple(str(kind) for kind in named)
    interval = text.number("full_attention_interval")
    if interval:
        return tuple(FULL if (layer + 1) % interval == 0 else LINEAR for layer in range(layers))
    windows = text.word("use_sliding_window") == "True" and text.number("sliding_window") > 0
    first = text.number("max_window_layers", layers) if windows else layers
    return tuple(FULL if layer < first else SLIDING for layer in range(layers))


def _vision(vision: _Values) -> VisionShape:
    depth, width = vision.positive("depth"), vision.positive("hidden_size")
    own = vision.number("embed_dim") or width  # Qwen2-VL calls the tower's width so, and what leaves the merger width
    everywhere = vision.items("fullatt_block_indexes")
    return VisionShape(
        width=own,
        depth=depth,
        heads=vision.positive("num_heads"),
        mlp_width=vision.number("intermediate_size") or own * vision.number("mlp_ratio"),
        gated=vision.word("hidden_act") == "silu",
        patch_size=vision.positive("patch_size"),
        merge_size=vision.positive("spatial_merge_size", 2),
        temporal_patch_size=vision.positive("temporal_patch_size", 2),
        out_width=vision.number("out_hidden_size") or width,
        taps=len(vision.items("deepstack_visual_indexes") or ()),
        everywhere=tuple(range(depth)) if everywhere is None else everywhere,
    )
