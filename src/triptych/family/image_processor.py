"""What a model folder says about images: pixel limits, mean and deviation, wherever its release keeps them.

A key that is absent means the default of transformers' class, as for transformers itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.errors import ModelError
from triptych.family.folders import read_json

PROCESSOR, IMAGE_PROCESSOR = "processor_config.json", "preprocessor_config.json"

# Defaults of transformers' Qwen2VLImageProcessor, which all families use.
MIN_PIXELS, MAX_PIXELS = 56 * 56, 28 * 28 * 1280
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3
# What Triptych's own pixels follow; a folder that says otherwise would be served with other pixels than it was trained.
FIXED: dict[str, Any] = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": BICUBIC}


@dataclass(frozen=True, slots=True)
class ImageProcessor:
    """How images are resized and normalised."""

    min_pixels: int
    max_pixels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def read_image_processor(folder: Path, path: str) -> ImageProcessor:
    """Read the image processor's settings.

    Args:
        folder: of the model.
        path: as the user named it; for messages.

    Raises:
        ModelError: if there are none, or a value cannot be used.
    """
    name, content = _content(folder, path)
    size = content.get("size")
    size = size if isinstance(size, Mapping) else {}

    def limit(old: str, new: str, default: int) -> int:
        # Older files name the limits min_pixels and max_pixels, some within `size`; newer ones keep edges in `size`.
        found = [value for value in (content.get(old), size.get(new), size.get(old)) if value is not None]
        value = found[0] if found else default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ModelError(f"{path}/{name}: {old} is {value!r}, not a number of pixels")
        return value

    for key, meant in FIXED.items():
        if content.get(key, meant) != meant:
            raise ModelError(
                f"{path}/{name}: {key} is {content[key]!r}, and Triptych reads images with {key} {meant!r} as the "
                "released models do; set it back"
            )
    return ImageProcessor(
        limit("min_pixels", "shortest_edge", MIN_PIXELS),
        limit("max_pixels", "longest_edge", MAX_PIXELS),
        _channels(content.get("image_mean"), MEAN, f"{path}/{name}: image_mean"),
        _channels(content.get("image_std"), STD, f"{path}/{name}: image_std"),
    )


def _content(folder: Path, path: str) -> tuple[str, Mapping[str, Any]]:
    """Name of the file and the settings in it; newer releases of transformers nest them in another file."""
    if (folder / PROCESSOR).exists():
        nested = read_json(folder, PROCESSOR, path).get("image_processor")
        if isinstance(nested, dict):
            return PROCESSOR, nested
    return IMAGE_PROCESSOR, read_json(folder, IMAGE_PROCESSOR, path)


def _channels(value: Any, default: tuple[float, float, float], name: str) -> tuple[float, float, float]:
    """A value for each of three colours; one number stands for all of them."""
    values = default if value is None else [value] * 3 if isinstance(value, int | float) else value
    if isinstance(values, list | tuple) and len(values) == 3 and all(_is_number(found) for found in values):
        red, green, blue = (float(found) for found in values)
        return red, green, blue
    raise ModelError(f"{name} is {value!r}, not three numbers")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
