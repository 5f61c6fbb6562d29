"""Write the tables of docs/memory.md and its twin: what a step needs, as `triptych plan` estimates it, without weights.

python tools/write_memory.py                                         write the tables of both pages (minutes)
python tools/write_memory.py qwen3_vl-4B --images 6 --side 896       show one model, all methods
"""

from __future__ import annotations

import argparse
import functools
import runpy
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from triptych.estimate.devices import GIB, SIZES, USABLE
from triptych.family.family import FAMILIES
from triptych.forward.memory import MemoryModel, RowSize, StepOptions
from triptych.images.geometry import Geometry
from triptych.model.qlora import quantised_weights
from triptych.model.trainable import set_up_training
from triptych.run.settings import ModelSettings

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "docs" / "memory.md", ROOT / "docs" / "memory.zh-CN.md")
BEGIN, END = "<!-- written by tools/write_memory.py: {name} -->", "<!-- end of {name} -->"
MODELS: dict[str, dict[str, Any]] = runpy.run_path(str(ROOT / "benchmarks" / "memory.py"))["MODELS"]
METHODS: dict[str, dict[str, Any]] = {
    "qlora": {"train": "qlora", "freeze": ["vision", "merger"]},
    "lora": {"train": "lora", "freeze": ["vision", "merger"]},
    "lora, tower too": {"train": "lora"},
    "full, tower frozen": {"train": "full", "freeze": ["vision"]},
    "full": {"train": "full"},
}
TEXT_TOKENS, TARGETS = 256, 64
"""Of a sample, beside its images"""
COLUMNS = ((2, 448), (2, 896), (8, 448), (8, 896), (32, 448))
"""Images of a sample, and their sides, px"""


@dataclass(frozen=True, slots=True)
class Sample:
    """A row of one sample."""

    images: int
    side: int
    """Of each image, px; they are square"""

    def row(self, config: Any) -> RowSize:
        vision = config.vision_config
        geometry = Geometry(vision.patch_size, vision.spatial_merge_size, 2, 56 * 56, self.side**2)
        height, width = geometry.resized(self.side, self.side)
        patches = self.images * (height // geometry.patch_size) * (width // geometry.patch_size)
        tokens = patches // geometry.merge_size**2 + 2 * self.images + TEXT_TOKENS
        return RowSize(tokens, patches, TARGETS)


@functools.cache
def memory_models(name: str, method: str) -> dict[bool, MemoryModel]:
    """Forecasts of a model and method, without and with gradient checkpointing; the model is on the meta device."""
    family = FAMILIES[MODELS[name]["model_type"]]
    with torch.device("meta"):
        empty = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**MODELS[name]), dtype=torch.float32)
        model = set_up_training(empty, family, ModelSettings(path=name, **METHODS[method]), torch.bfloat16)
    packed = set(quantised_weights(model, family)) if method == "qlora" else set()
    options = {again: StepOptions(checkpointing=again, attention="varlen", packed=packed) for again in (False, True)}
    return {again: MemoryModel(model, family, model.config, torch.bfloat16, step) for again, step in options.items()}


def gigabytes(memory: MemoryModel, config: Any, sample: Sample) -> float:
    return memory.step(sample.row(config)).total / 1e9


def smallest_gpu(needed: float) -> str:
    """The smallest usual GPU that has so many GB for tensors."""
    return next((f"{size} GB" for size in SIZES if needed * 1e9 <= size * GIB * USABLE), "-")


def lines_of(name: str, again: bool, samples: Iterable[Sample]) -> Iterator[str]:
    """Rows of a table: one for each method."""
    config = AutoConfig.for_model(**MODELS[name])
    for method in METHODS:
        memory = memory_models(name, method)[again]
        found = [gigabytes(memory, config, sample) for sample in samples]
        cells = [f"{value:.1f}" for value in found]
        yield f"| {name}, {method} | {' | '.join(cells)} | {smallest_gpu(max(found))} |"


def table(again: bool, names: Iterable[str]) -> str:
    """Model and method x images and sides, GB."""
    samples = [Sample(images, side) for images, side in COLUMNS]
    heads = [f"{sample.images} x {sample.side}²" for sample in samples]
    lines = [f"| | {' | '.join(heads)} | all of it fits |", "|---" * (len(heads) + 2) + "|"]
    for name in names:
        lines += lines_of(name, again, samples)
    return "\n".join(lines)


def replaced(text: str, name: str, content: str) -> str:
    """A page with the table of this name in its place."""
    begin, end = BEGIN.format(name=name), END.format(name=name)
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{content}\n\n{end}{rest.split(end)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", choices=list(MODELS))
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--side", type=int, default=896)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if arguments.model:
        sample = Sample(arguments.images, arguments.side)
        config = AutoConfig.for_model(**MODELS[arguments.model])
        print(f"{sample.row(config).tokens:,} tokens; GB without, with gradient checkpointing")
        for method in METHODS:
            memory = memory_models(arguments.model, method)
            print(f"{method:20}", *(f"{gigabytes(memory[again], config, sample):8.1f}" for again in (False, True)))
        return
    tables = {name: table(again, MODELS) for name, again in (("checkpointed", True), ("kept", False))}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name, content in tables.items():
            text = replaced(text, name, content)
        page.write_text(text.replace("all of it fits", "全部放得下") if ".zh-" in page.name else text, encoding="utf-8")


if __name__ == "__main__":
    main()
