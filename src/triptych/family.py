"""How the families differ, in one table, and what a model folder says before any weight is read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.data.geometry import Geometry
from triptych.data.template import Template
from triptych.errors import ModelError


@dataclass(frozen=True, slots=True)
class Family:
    """What Triptych must know of a family beyond what its config files say."""

    name: str
    default_system: str | None
    """System prompt that the released chat template inserts where there is none."""
    image_processor: str
    """Class of transformers that cuts this family's pictures, as its ``preprocessor_config.json`` names it."""
    processor: str
    """Class of transformers that joins tokenizer and image processor."""
    vision: str
    """Name of the vision tower inside the model; the merger is inside it."""
    merger: tuple[str, ...]
    """Names of the projector's modules inside the model."""
    recurrent: bool = False
    """Whether some language layers carry a state from token to token, instead of attending."""


# A new family is a row here, keyed by the `model_type` of its config.json.
FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family(
        name="Qwen2-VL",
        default_system="You are a helpful assistant.",
        image_processor="Qwen2VLImageProcessor",
        processor="Qwen2VLProcessor",
        vision="model.visual",
        merger=("model.visual.merger",),
    ),
}


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model folder, read up to its weights."""

    folder: Path
    family: Family
    geometry: Geometry
    """With the pixel limits that the model was released with."""
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    config: dict[str, Any]
    """Content of ``config.json``."""

    def template(self) -> Template:
        return Template.from_file(self.folder / "tokenizer.json", self.family.default_system)

    def tokenizer_hash(self) -> str:
        """Names the tokenizer in keys of indexes."""
        return hashlib.sha256((self.folder / "tokenizer.json").read_bytes()).hexdigest()


def read_model_files(path: str) -> ModelFiles:
    """Read the small files of a model folder or hub name; no weights, no torch.

    Raises:
        ModelError: if the folder or a file of it is missing, or the family is not supported.
    """
    folder = _local_folder(path)
    config = _read_json(folder, "config.json", path)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ModelError(f"{path}: model_type {model_type!r} is not supported; these are: {', '.join(FAMILIES)}")
    if not (folder / "tokenizer.json").exists():
        raise ModelError(
            f"{path} has no tokenizer.json; save it with AutoTokenizer.from_pretrained(...).save_pretrained"
        )
    processor = _image_processor(folder, path)
    try:
        vision = config["vision_config"]
        size = processor.get("size") or {}
        geometry = Geometry(
            patch_size=vision["patch_size"],
            merge_size=vision["spatial_merge_size"],
            temporal_patch_size=vision["temporal_patch_size"],
            # Older files name the limits min_pixels and max_pixels, newer ones keep them in `size`.
            min_pixels=processor.get("min_pixels") or size["shortest_edge"],
            max_pixels=processor.get("max_pixels") or size["longest_edge"],
        )
        mean, std = tuple(processor["image_mean"]), tuple(processor["image_std"])
    except KeyError as error:
        raise ModelError(f"{path}: no {error} in its config files; it is not a complete model folder") from error
    return ModelFiles(folder, FAMILIES[model_type], geometry, mean, std, config)


def _local_folder(path: str) -> Path:
    if Path(path).is_dir():
        return Path(path)
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ModelError(f"no model folder {path!r}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, allow_patterns=["*.json", "*.txt", "*.jinja"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"{path!r} is neither a model folder nor reachable on the hub: {error}") from error


def _image_processor(folder: Path, path: str) -> dict[str, Any]:
    """Settings of the image processor, wherever this version of transformers saved them."""
    if (folder / "processor_config.json").exists():
        nested = _read_json(folder, "processor_config.json", path).get("image_processor")
        if isinstance(nested, dict):
            return nested
    return _read_json(folder, "preprocessor_config.json", path)


def _read_json(folder: Path, name: str, path: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path} has no {name}: it is not a complete model folder") from error
    except OSError as error:
        raise ModelError(f"cannot read {path}/{name}: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path}/{name} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}/{name} is not a JSON object")
    return content
