"""How fast does a step of Qwen2-VL run on one GPU, with what memory, and is a packed row still its samples alone?

Method: the shapes of the released models with random weights made on the device; bfloat16 under autocast, trained
weights in float32, AdamW. A row holds four samples of two images of 768 x 768 each; a tenth of its tokens are
targets. Every case (model, row, what learns, attention, checkpointing) runs in a process of its own: a row packed and
its samples alone, compared, then two steps to warm up and five that are timed, of which the median counts. MFU is the
model's own FLOPs (`triptych.forward.flops`, recomputation not counted)
over the device's peak from its data sheet, and over the
rate of a product of two large matrices measured in the same process. `estimate` is what `triptych plan` says of the
same row. `packed_loss` and `packed_gradient` are relative differences, packed to alone, the latter over the first
language layer's trained weights. A case that does not run is a line that says why.

    python benchmarks/gpu.py                           all cases on the current GPU; benchmarks/results/gpu.jsonl
    python benchmarks/gpu.py --models 2B --rows 8192   some of them
    python benchmarks/gpu.py --tiny --device cpu       tiny shapes, nothing kept: does the script itself work?
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import platform
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import torch
import transformers
from torch import nn
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, set_seed

from triptych.errors import Origin
from triptych.family.family import FAMILIES
from triptych.forward.attention import install_attention
from triptych.forward.batch import Batch, end_to_end
from triptych.forward.flops import FlopCounter, device_peak
from triptych.forward.memory import MemoryModel, RowSize, StepOptions
from triptych.forward.row_forward import RowForward
from triptych.images.geometry import Geometry
from triptych.model.device import allow_any_length
from triptych.model.loading import PixelNormalizer
from triptych.model.trainable import checkpoint_layers, set_up_training
from triptych.run.settings import AttentionName, ModelSettings
from triptych.text.layout import Layout, lay_out
from triptych.text.template import Encoded

FAMILY = FAMILIES["qwen2_vl"]
RESULTS = Path(__file__).parent / "results" / "gpu.jsonl"
GEOMETRY = Geometry(patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=56 * 56, max_pixels=28 * 28 * 1280)
WARM_UP, STEPS = 2, 5
SAMPLES, IMAGES_PER_SAMPLE, SIDE_PX = 4, 2, 768
TARGET_SHARE = 0.1
IMAGE_PAD, VISION_START, VISION_END, VIDEO_PAD = 151655, 151652, 151653, 151656

# As in the released config.json of each size.
MODELS: dict[str, dict[str, dict[str, Any]]] = {
    "2B": {
        "text": {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "vocab_size": 151936},
        "vision": {"hidden_size": 1536},
        "top": {"tie_word_embeddings": True},
    },
    "7B": {
        "text": {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
        },
        "vision": {"hidden_size": 3584},
        "top": {"tie_word_embeddings": False},
    },
    "tiny": {
        "text": {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "vocab_size": 151936,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        },
        "vision": {"hidden_size": 128, "depth": 2, "embed_dim": 64, "num_heads": 4},
        "top": {"tie_word_embeddings": True},
    },
}
TEXT = {
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
VISION = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14}

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"train": "lora", "freeze": ["vision", "merger"]},
    "full, tower frozen": {"train": "full", "freeze": ["vision"]},
    "full": {"train": "full"},
}


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the results."""

    device: str
    model: str
    row: int
    """Tokens"""
    method: str
    attention: AttentionName
    checkpointing: bool


def make_model(case: Case) -> Qwen2VLForConditionalGeneration:
    """Random weights, made on the device."""
    set_seed(0)
    shape = MODELS[case.model]
    config = Qwen2VLConfig(
        text_config={**TEXT, **shape["text"]},
        vision_config={**VISION, **shape["vision"]},
        image_token_id=IMAGE_PAD,
        video_token_id=VIDEO_PAD,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        **shape["top"],
    )
    with torch.device(case.device):
        return Qwen2VLForConditionalGeneration(config)


def make_row(case: Case, geometry: Geometry) -> Batch:
    """Four samples of equal length: two images each, then text, whose end is the target."""
    random = np.random.default_rng(0)
    side = geometry.resized(SIDE_PX, SIDE_PX) if case.model != "tiny" else (2 * geometry.factor, 2 * geometry.factor)
    length = case.row // SAMPLES - IMAGES_PER_SAMPLE * (geometry.tokens(*side) - 1)
    marks = [VISION_START, IMAGE_PAD, VISION_END] * IMAGES_PER_SAMPLE
    layouts = []
    for number in range(SAMPLES):
        ids = np.concatenate((marks, random.integers(0, 150_000, length - len(marks)))).astype(np.int32)
        supervised = np.arange(length) >= length - int(case.row // SAMPLES * TARGET_SHARE)
        slots = np.flatnonzero(ids == IMAGE_PAD).astype(np.int32)
        encoded = Encoded(ids, supervised, slots)
        layouts.append(lay_out(encoded, [side] * IMAGES_PER_SAMPLE, geometry, Origin("benchmark", number + 1)))
    return _batch(layouts, geometry, random)


def _batch(layouts: list[Layout], geometry: Geometry, random: np.random.Generator) -> Batch:
    lengths = [len(layout.input_ids) for layout in layouts]
    ids = torch.from_numpy(np.concatenate([layout.input_ids for layout in layouts]))
    targets = torch.from_numpy(np.flatnonzero(np.concatenate([layout.supervised for layout in layouts])))
    positions = [np.concatenate((np.arange(n)[None], x.position_ids)) for n, x in zip(lengths, layouts, strict=True)]
    grids = np.concatenate([layout.grids for layout in layouts])
    values = 3 * geometry.patch_size**2
    kept = [torch.from_numpy(np.flatnonzero(layout.supervised) - 1) for layout in layouts]
    return Batch(
        input_ids=ids[None],
        position_ids=torch.from_numpy(np.concatenate(positions, 1))[:, None],
        pixels=torch.from_numpy(random.integers(0, 256, (int(grids.prod(1).sum()), values), np.uint8)),
        image_grid_thw=torch.from_numpy(grids),
        logits_to_keep=targets - 1,
        targets=ids[targets],
        weights=torch.ones(len(targets)),
        cu_seqlens=torch.from_numpy(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)),
        paths=end_to_end(lengths, kept, (IMAGES_PER_SAMPLE,) * len(layouts)),
        image_patches=tuple(grids.prod(1).tolist()),
        samples=tuple(range(len(layouts))),
        problems=(),
    )


def run(case: Case) -> dict[str, Any]:
    """The numbers of a case; raises what stops it."""
    device = torch.device(case.device)
    loaded = make_model(case)
    allow_any_length(device)
    attention = install_attention(loaded, case.attention, device, torch.bfloat16, recurrent=False)
    settings = ModelSettings(path="benchmark", **METHODS[case.method])
    model = set_up_training(loaded, FAMILY, settings, torch.bfloat16)
    model.config.use_cache = False
    model.train()
    if case.checkpointing:
        checkpoint_layers(model)
    row = make_row(case, GEOMETRY)
    size = RowSize(row.input_ids.shape[1], len(row.pixels), len(row.targets))
    estimate = MemoryModel(
        model,
        FAMILY,
        model.config,
        torch.bfloat16,
        StepOptions(checkpointing=case.checkpointing, attention=attention.name),
    ).step(size)
    flops = FlopCounter(model, FAMILY, model.config).row(row)
    forward = RowForward(_normalizer(GEOMETRY).to(device), attention=attention)
    row = row.to(device)
    differences = packed_to_alone(model, forward, row)
    seconds = step_seconds(model, forward, row)
    rate, peak = matmul_rate(device), device_peak()
    return {
        "attention_chosen": str(attention),
        "tokens": size.tokens,
        "patches": size.patches,
        "seconds": seconds,
        "tokens_per_second": size.tokens / seconds,
        "mfu_of_peak": flops / seconds / peak if peak else None,
        "mfu_of_matmul": flops / seconds / rate,
        "matmul_tflops": rate / 1e12,
        "peak_gb": peak_bytes(device) / 1e9,
        "estimate_gb": estimate.total / 1e9,
        **differences,
    }


def _normalizer(geometry: Geometry) -> PixelNormalizer:
    """That of the family, whose mean and standard deviation are those of CLIP."""
    files: Any = SimpleNamespace(
        image_mean=(0.48145466, 0.4578275, 0.40821073),
        image_std=(0.26862954, 0.26130258, 0.27577711),
        geometry=geometry,
    )
    return PixelNormalizer(files)


def _loss(model: nn.Module, forward: RowForward, row: Batch) -> torch.Tensor:
    with torch.autocast(row.input_ids.device.type, torch.bfloat16):
        return forward.summed_loss(model, row)


def packed_to_alone(model: nn.Module, forward: RowForward, row: Batch) -> dict[str, float]:
    """How far the row is from its samples run one by one, in the precision of training."""
    watched = [p for name, p in model.named_parameters() if p.requires_grad and "language_model.layers.0." in name]
    found = []
    for parts in ([row], list(row.unpack())):
        model.zero_grad()
        losses = []
        for part in parts:
            loss = _loss(model, forward, part)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.item())
        gradient = torch.cat([p.grad.flatten().float() for p in watched if p.grad is not None])
        found.append((sum(losses), gradient))
    model.zero_grad()
    (packed, one), (alone, other) = found
    return {
        "packed_loss": abs(packed - alone) / abs(alone),
        "packed_gradient": float((one - other).norm() / other.norm()),
    }


def step_seconds(model: nn.Module, forward: RowForward, row: Batch) -> float:
    """Median seconds of forward, backward and the optimizer's step."""
    device = row.input_ids.device
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=device.type == "cuda")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    for _ in range(WARM_UP + STEPS):
        began = time.perf_counter()
        (_loss(model, forward, row) / len(row.targets)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[WARM_UP:])


def matmul_rate(device: torch.device) -> float:
    """FLOP/s of a product of two square bfloat16 matrices."""
    width, repeats = (8192, 20) if device.type == "cuda" else (512, 3)
    left, right = (torch.randn(width, width, dtype=torch.bfloat16, device=device) for _ in range(2))
    left @ right
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(repeats):
        left @ right
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 2 * width**3 * repeats / (time.perf_counter() - began)


def peak_bytes(device: torch.device) -> int:
    """Of the timed steps; of the whole process where there is no GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def attempt(case: Case) -> dict[str, Any]:
    """The numbers of a case, or why there are none."""
    try:
        return run(case)
    except torch.OutOfMemoryError:
        return {"failed": "out of memory"}
    except Exception as error:  # whatever it is belongs into the results
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}


def in_own_process(case: Case) -> dict[str, Any]:
    """Nothing of one case is left in the memory of the next."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(attempt, case).result()
        except BrokenProcessPool:
            return {"failed": "its process was killed"}


def shown(case: Case, found: dict[str, Any]) -> str:
    """A line for people."""
    checkpointing = "checkpointed" if case.checkpointing else ""
    what = f"{case.model:>4} {case.row:6,} {case.method:18} {case.attention:17} {checkpointing:12}"
    if "failed" in found:
        return f"{what} {found['failed']}"
    peak = "" if found["mfu_of_peak"] is None else f" {found['mfu_of_peak']:6.1%}"
    return (
        f"{what} {found['tokens_per_second']:9,.0f} tokens/s{peak} {found['mfu_of_matmul']:6.1%} of matmul "
        f"{found['peak_gb']:6.2f} GB (estimate {found['estimate_gb']:6.2f}) packed: loss {found['packed_loss']:.1e}, "
        f"gradient {found['packed_gradient']:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure training steps of Qwen2-VL on one device.")
    settings = [name for name in get_args(AttentionName) if name not in ("auto", "eager")]
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes; nothing is written unless --out says where")
    parser.add_argument("--models", nargs="+", default=["2B", "7B"], choices=["2B", "7B"])
    parser.add_argument("--rows", nargs="+", type=int, default=[8192, 16384], help="tokens")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--attention", nargs="+", default=settings, choices=settings)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here; --tiny --device cpu tries the script")
    models, rows = (["tiny"], [512]) if arguments.tiny else (arguments.models, arguments.rows)
    out = arguments.out or (None if arguments.tiny else RESULTS)
    machine = {
        "machine": torch.cuda.get_device_name() if arguments.device == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    for choice in itertools.product(models, rows, arguments.methods, arguments.attention, (False, True)):
        case = Case(arguments.device, *choice)
        found = attempt(case) if arguments.tiny else in_own_process(case)
        print(shown(case, found), flush=True)
        if out is not None:
            out.parent.mkdir(exist_ok=True, parents=True)
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**machine, **asdict(case), **found}) + "\n")


if __name__ == "__main__":
    main()
