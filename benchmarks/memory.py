"""How far is the memory that `triptych plan` forecasts from what torch accounts for, on the shapes of released models?

Method: the architectures of transformers with the shapes of the released models, no weights: parameters are fake
tensors (torch's FakeTensorMode), which have a size and no content. A row of samples of equal length goes through the
forward pass, the backward pass and AdamW's step as in training, under bfloat16 autocast and torch's varlen attention;
then a second row, with the gradients of the first still there, as where a step has more than one row. A dispatch mode
adds up every storage that is alive, as torch's `MemTracker` does, which cannot be used itself: it takes no frozen
parameters. The peak is compared with the forecast. In neither is what a GPU's allocator rounds up and kernels use.
Families with recurrent layers are counted on transformers' reference path, sample by sample, as they run without their
kernels.

    python benchmarks/memory.py                     all cases; benchmarks/results/memory.jsonl
    python benchmarks/memory.py --models qwen3_vl-2B --images 1 4
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from triptych.errors import Origin
from triptych.family.family import FAMILIES, Family
from triptych.forward.attention import IMPLEMENTATIONS, Attention
from triptych.forward.batch import Batch, end_to_end
from triptych.forward.isolation import PACKED, Isolation
from triptych.forward.memory import MemoryModel, RowSize, StepOptions
from triptych.forward.row_forward import RowForward
from triptych.images.geometry import Geometry
from triptych.model.loading import PixelNormalizer
from triptych.model.patch_embed import project_by_product
from triptych.model.trainable import checkpoint_layers, set_up_training
from triptych.run.settings import ModelSettings
from triptych.text.layout import lay_out
from triptych.text.template import Encoded

RESULTS = Path(__file__).parent / "results" / "memory.jsonl"
SIDE_PX = 768
TEXT_TOKENS, TARGETS = 160, 48
"""Of each sample, beside its images"""
LOGITS_LIMIT = 512 * 2**20
PARAMETERS = "Parameter"

LONG_ROPE = {"rope_type": "default", "rope_theta": 1e6}
QWEN2_VISION = {"depth": 32, "num_heads": 16, "patch_size": 14}
QWEN3_SMALL = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "deepstack_visual_indexes": [5, 11, 17],
}
QWEN3_LARGE = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "deepstack_visual_indexes": [8, 16, 24],
}


def _text(width: int, inner: int, layers: int, heads: int, shared: int, **more: Any) -> dict[str, Any]:
    """Text shapes of a model: width, width of the MLP, layers, heads of queries and of keys."""
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        **more,
    }


def _qwen2(family: str, text: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    width = text["hidden_size"]
    vision = {**QWEN2_VISION, "embed_dim": 1280, "mlp_ratio": 4, "hidden_size": width}
    if family == "qwen2_5_vl":
        vision = {
            **QWEN2_VISION,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "out_hidden_size": width,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        }
    rope = {**LONG_ROPE, "mrope_section": [16, 24, 24]}
    vocabulary = 151936 if tied else 152064
    return {
        "model_type": family,
        "text_config": {**text, "rope_parameters": rope, "vocab_size": vocabulary},
        "vision_config": vision,
        "tie_word_embeddings": tied,
    }


def _qwen3(family: str, text: dict[str, Any], vision: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    section = [11, 11, 10] if family.startswith("qwen3_5") else [24, 20, 20]
    rope = {**LONG_ROPE, "mrope_section": section, "mrope_interleaved": True}
    if family.startswith("qwen3_5"):
        rope["partial_rotary_factor"] = 0.25
        vision = {key: value for key, value in vision.items() if key != "deepstack_visual_indexes"}
        text = {"head_dim": 256, **text}
    else:
        text = {"head_dim": 128, "vocab_size": 151936, **text}
    return {
        "model_type": family,
        "text_config": {**text, "rope_parameters": rope},
        "vision_config": {**vision, "out_hidden_size": text["hidden_size"]},
        "tie_word_embeddings": tied,
    }


EXPERTS = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
# As in the config.json of each released size.
MODELS: dict[str, dict[str, Any]] = {
    "qwen2_vl-2B": _qwen2("qwen2_vl", _text(1536, 8960, 28, 12, 2), tied=True),
    "qwen2_vl-7B": _qwen2("qwen2_vl", _text(3584, 18944, 28, 28, 4), tied=False),
    "qwen2_5_vl-3B": _qwen2("qwen2_5_vl", _text(2048, 11008, 36, 16, 2), tied=True),
    "qwen2_5_vl-7B": _qwen2("qwen2_5_vl", _text(3584, 18944, 28, 28, 4), tied=False),
    "qwen2_5_vl-32B": _qwen2("qwen2_5_vl", _text(5120, 27648, 64, 40, 8), tied=False),
    "qwen3_vl-2B": _qwen3("qwen3_vl", _text(2048, 6144, 28, 16, 8), QWEN3_SMALL, tied=True),
    "qwen3_vl-4B": _qwen3("qwen3_vl", _text(2560, 9728, 36, 32, 8), QWEN3_SMALL, tied=True),
    "qwen3_vl-8B": _qwen3("qwen3_vl", _text(4096, 12288, 36, 32, 8), QWEN3_LARGE, tied=False),
    "qwen3_vl-32B": _qwen3("qwen3_vl", _text(5120, 25600, 64, 64, 8), QWEN3_LARGE, tied=False),
    "qwen3_vl_moe-30B": _qwen3("qwen3_vl_moe", _text(2048, 6144, 48, 32, 4, **EXPERTS), QWEN3_LARGE, tied=False),
    "qwen3_5-9B": _qwen3("qwen3_5", _text(4096, 12288, 32, 16, 4), QWEN3_LARGE, tied=False),
    "qwen3_5-27B": _qwen3("qwen3_5", _text(5120, 17408, 64, 24, 4, linear_num_value_heads=48), QWEN3_LARGE, tied=False),
    "qwen3_5_moe-35B": _qwen3("qwen3_5_moe", {"hidden_size": 2048, "num_hidden_layers": 40}, QWEN3_LARGE, tied=False),
}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"train": "lora", "freeze": ["vision", "merger"]},
    "lora, tower too": {"train": "lora"},
    "full, tower frozen": {"train": "full", "freeze": ["vision"]},
    "full": {"train": "full"},
}


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the results."""

    model: str
    method: str
    images: int
    """Of each sample"""
    samples: int
    """Of the row"""
    checkpointing: bool


def make_model(name: str, method: str, *, checkpointing: bool) -> tuple[PreTrainedModel, Attention]:
    """A model of fake tensors, set up for training."""
    family = FAMILIES[MODELS[name]["model_type"]]
    config = AutoConfig.for_model(**MODELS[name])
    ids = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 3, "vision_end_token_id": 4}
    for key, value in ids.items():
        setattr(config, key, value)
    text, vision = IMPLEMENTATIONS["varlen"]
    attention = Attention("varlen", text, "sdpa" if family.recurrent else vision)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        attention.install(model)
        project_by_product(model)
        model = set_up_training(model, family, ModelSettings(path=name, **METHODS[method]), torch.bfloat16)
    model.config.use_cache = False
    if checkpointing:
        checkpoint_layers(model)
    return model.train(), attention


def without_content(model: nn.Module, mode: FakeTensorMode) -> None:
    """Replace parameters and buffers by fake tensors of the CPU; what is shared stays shared."""
    made: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            with mode:
                empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if parameter else empty
        return made[id(tensor)]

    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = fake(tensor)


class KnownMasks(TorchDispatchMode):
    """Index fake tensors by real masks: how many values that gives is known, which fake mode does not use."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.index.Tensor and isinstance(args[0], FakeTensor):
            places: list[torch.Tensor | None] = []
            for index in args[1]:
                real = index is not None and not isinstance(index, FakeTensor) and index.dtype is torch.bool
                places += list(index.nonzero(as_tuple=True)) if real else [index]
            args = (args[0], places)
        return func(*args, **(kwargs or {}))


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that are alive, now and at most; real tensors (ids, positions) are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def add(self, tensor: torch.Tensor) -> None:
        if not isinstance(tensor.data if isinstance(tensor, nn.Parameter) else tensor, FakeTensor):
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def gone(_: Any) -> None:
            self.now -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return result


def make_row(model: PreTrainedModel, case: Case, mode: FakeTensorMode) -> tuple[Batch, Geometry]:
    """Samples of equal length: their images, then text, whose end is the target. Only the pixels are fake."""
    config = model.config
    patch, merge = config.vision_config.patch_size, config.vision_config.spatial_merge_size
    geometry = Geometry(patch, merge, config.vision_config.temporal_patch_size, 56 * 56, SIDE_PX * SIDE_PX)
    side = geometry.resized(SIDE_PX, SIDE_PX)
    marks = [3, 5, 4] * case.images
    ids = np.concatenate((marks, np.full(TEXT_TOKENS, 9))).astype(np.int32)
    supervised = np.arange(len(ids)) >= len(ids) - TARGETS
    encoded = Encoded(ids, supervised, np.flatnonzero(ids == 5).astype(np.int32))
    layout = lay_out(encoded, [side] * case.images, geometry, Origin("benchmark", 1))
    length = len(layout.input_ids)
    every = torch.from_numpy(np.concatenate([layout.input_ids] * case.samples))
    targets = torch.from_numpy(np.flatnonzero(np.concatenate([layout.supervised] * case.samples)))
    positions = np.concatenate((np.arange(length)[None], layout.position_ids))
    grids = torch.from_numpy(np.concatenate([layout.grids] * case.samples))
    patches = int(grids.prod(1).sum())
    kept = torch.from_numpy(np.flatnonzero(layout.supervised) - 1)
    with mode:
        pixels = torch.empty(patches, 3 * patch**2, dtype=torch.uint8)
    row = Batch(
        input_ids=every[None],
        position_ids=torch.from_numpy(np.concatenate([positions] * case.samples, 1))[:, None],
        pixels=pixels,
        image_grid_thw=grids,
        logits_to_keep=targets - 1,
        targets=every[targets],
        weights=torch.ones(len(targets)),
        cu_seqlens=torch.arange(case.samples + 1, dtype=torch.int32) * length,
        paths=end_to_end([length] * case.samples, [kept] * case.samples, [case.images] * case.samples),
        image_patches=tuple(grids.prod(1).tolist()),
        samples=tuple(range(case.samples)),
        problems=(),
    )
    return row, geometry


def forward_of(family: Family, attention: Attention, geometry: Geometry) -> RowForward:
    files: Any = SimpleNamespace(image_mean=(0.5,) * 3, image_std=(0.5,) * 3, geometry=geometry)
    isolation = Isolation(packs=False) if family.recurrent else PACKED
    return RowForward(PixelNormalizer(files), isolation, attention, logits_limit=LOGITS_LIMIT)


def account(case: Case) -> dict[str, Any]:
    """What the tracker counts and what is forecast, GB."""
    family = FAMILIES[MODELS[case.model]["model_type"]]
    model, attention = make_model(case.model, case.method, checkpointing=case.checkpointing)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    row, geometry = make_row(model, case, mode)
    size = RowSize(row.input_ids.shape[1], len(row.pixels), len(row.targets))
    memory = MemoryModel(
        model,
        family,
        model.config,
        torch.bfloat16,
        StepOptions(case.checkpointing, attention=attention.name, logits_limit=LOGITS_LIMIT),
    )
    step = memory.step(size)
    without_content(model, mode)
    forward = forward_of(family, attention, geometry)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    live, peaks = LiveBytes(), []
    for tensor in (*model.parameters(), *model.buffers(), row.pixels):
        live.add(tensor)
    with live, KnownMasks():
        for number in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                loss = forward.summed_loss(model, row)
            loss.backward()
            peaks.append(live.peak)
            del loss
            if number == 0:
                optimizer.step()
                live.peak = live.now
    accounted = max(peaks)
    return {
        **asdict(size),
        "first_row_gb": peaks[0] / 1e9,
        "accounted_gb": accounted / 1e9,
        "forecast_gb": step.total / 1e9,
        "ratio": step.total / accounted,
        **{f"forecast_{name}_gb": value / 1e9 for name, value in asdict(step).items()},
    }


def cases(arguments: argparse.Namespace) -> Iterator[Case]:
    for model in arguments.models:
        for method in arguments.methods:
            for images in arguments.images:
                for checkpointing in (False, True):
                    yield Case(model, method, images, arguments.samples, checkpointing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--images", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    with arguments.out.open("w", encoding="utf-8") as out:
        for case in cases(arguments):
            began = time.monotonic()
            line = {**asdict(case), "torch": torch.__version__, "transformers": transformers.__version__}
            try:
                line |= account(case)
            except (RuntimeError, ValueError) as error:
                line["failed"] = f"{type(error).__name__}: {error}".splitlines()[0]
            line["seconds"] = round(time.monotonic() - began, 1)
            out.write(json.dumps(line) + "\n")
            out.flush()
            shown = line.get("failed") or f"{line['accounted_gb']:8.2f} {line['forecast_gb']:8.2f} {line['ratio']:.3f}"
            print(f"{case.model:18} {case.method:20} {case.images:3} {case.checkpointing!s:5} {shown}", flush=True)


if __name__ == "__main__":
    main()
