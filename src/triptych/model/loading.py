"""Load a model through transformers' front doors, and write the files that serving needs beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig, PreTrainedModel

from triptych.errors import ConfigError, ModelError
from triptych.family.family import ModelFiles
from triptych.family.folders import check_not_quantised
from triptych.family.image_processor import IMAGE_PROCESSOR, PROCESSOR
from triptych.images.geometry import Geometry
from triptych.model.intact import load_whole
from triptych.run.settings import ModelSettings

TEMPLATE_FILE, OLD_TEMPLATE_FILE = "chat_template.jinja", "chat_template.json"
"""Where releases of transformers look for a chat template; the first comes first."""

# Files that serving needs beside the weights; which of them exist depends on the version that saved the folder.
PROCESSOR_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    OLD_TEMPLATE_FILE,
    IMAGE_PROCESSOR,
    PROCESSOR,
    "video_preprocessor_config.json",
)
CHANGED_FILES = (IMAGE_PROCESSOR, PROCESSOR, OLD_TEMPLATE_FILE, "tokenizer_config.json")


def load_model(
    settings: ModelSettings, *, dtype: torch.dtype = torch.float32, quantization: BitsAndBytesConfig | None = None
) -> PreTrainedModel:
    """Load the weights of ``settings.path``, those that ``quantization`` names packed, with the attention
    that transformers chooses.

    Raises:
        ModelError: if transformers cannot load them, or not all of them; see ``load_whole``.
    """
    try:
        config = AutoConfig.from_pretrained(settings.path)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise ModelError(f"cannot load the model {settings.path}: {error}") from error
    check_not_quantised(config.to_dict(), settings.path)
    return load_whole(settings.path, config=config, dtype=dtype, quantization_config=quantization)


def empty_model(settings: ModelSettings) -> PreTrainedModel:
    """The model of ``settings.path`` with its shapes and without its weights; for the ``meta`` device.

    Raises:
        ModelError: if transformers does not know it.
    """
    try:
        config = AutoConfig.from_pretrained(settings.path)
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise ModelError(f"cannot make the model {settings.path}: {error}") from error
    return model


class PixelNormalizer(nn.Module):
    """Bytes to the tower's input, on the device: scale to [0, 1], normalise, repeat in time.

    The same arithmetic as transformers' image processors of the family, within float32 rounding.
    """

    def __init__(self, files: ModelFiles) -> None:
        super().__init__()
        # (x / 255 - mean) / std as one multiplication and one addition per value
        mean, std = (
            torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (files.image_mean, files.image_std)
        )
        self.scale: torch.Tensor
        self.shift: torch.Tensor
        self.register_buffer("scale", (1 / (255 * std)).float(), persistent=False)
        self.register_buffer("shift", (-mean / std).float(), persistent=False)
        self.frames = files.geometry.temporal_patch_size
        self.patch_area = files.geometry.patch_size**2

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(P, 3 * p * p) uint8 -> (P, 3 * frames * p * p) float32"""
        return self.repeated(pixels).flatten(1)

    def repeated(self, pixels: torch.Tensor) -> torch.Tensor:
        """(P, 3 * p * p) uint8 -> (P, 3, frames, p * p) float32, the frames one in memory.

        The family's towers take it as it is: they cut their input into frames themselves.
        """
        values = pixels.view(pixels.shape[0], 3, 1, self.patch_area).float()
        return values.mul_(self.scale).add_(self.shift).expand(-1, -1, self.frames, -1)


class ProcessorFiles:
    """The tokenizer and processor files of a model, with the pixel limits of a run: serving sees what training saw."""

    def __init__(self, files: ModelFiles, geometry: Geometry, extra: Mapping[str, str]) -> None:
        """
        Args:
            files: the model folder that the run started from.
            geometry: the pixel limits of the run.
            extra: further files to write beside them, name -> content.
        """
        self.files = files
        self.geometry = geometry
        self.extra = extra

    def save_pretrained(self, folder: str | Path) -> None:
        """Write them into ``folder``; ``Trainer`` calls this for every checkpoint."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        (target / TEMPLATE_FILE).write_text(self.files.chat_template.source, encoding="utf-8")
        for name in PROCESSOR_FILES:
            source = self.files.folder / name
            if not source.exists():
                continue
            if name in CHANGED_FILES:
                content = self._changed(name, json.loads(source.read_text(encoding="utf-8")))
                (target / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            else:
                shutil.copyfile(source, target / name)
        for name, text in self.extra.items():
            (target / name).write_text(text, encoding="utf-8")

    def _changed(self, name: str, content: dict[str, Any]) -> dict[str, Any]:
        """What a processor or tokenizer file says after training: wherever it holds a chat template, the one in use."""
        used = self.files.chat_template.source
        if name == OLD_TEMPLATE_FILE:
            return {**content, "chat_template": used}
        # Without its class, AutoProcessor asks config.json, which a folder of adapters does not have.
        content = {"processor_class": self.files.family.processor, **content}
        if name == "tokenizer_config.json":
            # Prompts of a batch end together where their answers begin.
            return {**content, "padding_side": "left", **_with_template(content, used)}
        if name == IMAGE_PROCESSOR:
            return {**content, **self._images()}
        if isinstance(content.get("image_processor"), dict):
            return {**content, "image_processor": {**content["image_processor"], **self._images()}}
        return content

    def _images(self) -> dict[str, Any]:
        """How training read images, in full: what a file leaves out means other numbers to other releases."""
        geometry = self.geometry.for_servers()
        return {
            # Both spellings: older releases of transformers and vLLM read the first, newer ones the second.
            "min_pixels": geometry.min_pixels,
            "max_pixels": geometry.max_pixels,
            "size": {"shortest_edge": geometry.min_pixels, "longest_edge": geometry.max_pixels},
            "patch_size": geometry.patch_size,
            "merge_size": geometry.merge_size,
            "temporal_patch_size": geometry.temporal_patch_size,
            "image_mean": list(self.files.image_mean),
            "image_std": list(self.files.image_std),
        }


def _with_template(content: dict[str, Any], used: str) -> dict[str, Any]:
    """The chat template of a ``tokenizer_config.json``, if it has one: alone, or the default among several."""
    found = content.get("chat_template")
    if found is None:
        return {}
    if not isinstance(found, list):
        return {"chat_template": used}
    others = [item for item in found if item["name"] != "default"]
    return {"chat_template": [{"name": "default", "template": used}, *others]}


def choose_precision(settings: ModelSettings) -> torch.dtype:
    """Precision of the arithmetic: as set, or bfloat16 where a GPU has it.

    Raises:
        ConfigError: if bfloat16 is asked of a GPU that lacks it.
    """
    supported = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    if settings.precision == "auto":
        return torch.bfloat16 if supported else torch.float32
    if settings.precision == "bfloat16" and torch.cuda.is_available() and not supported:
        raise ConfigError("model.precision: this GPU has no bfloat16; use float32")
    return torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
