"""What the header of an image says, and what programs that serve a model make of it in different ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntFlag

from PIL import Image

SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that exchange height and width."""


class Trait(IntFlag):
    """What not every program that reads an image treats alike."""

    TURNED = 1
    """An EXIF orientation turns or mirrors it."""
    ALPHA = 2
    """It has transparency."""
    DEEP_GREY = 4
    """It is grey of more than 8 bits."""


NONE = Trait(0)
_SAID = {
    Trait.DEEP_GREY: "with grey of more than 8 bits: scaled in training, white or black at servers",
    Trait.ALPHA: "with transparency: on white in training and vLLM, dropped by transformers",
    Trait.TURNED: "turned by EXIF in training and vLLM, not by old releases of transformers",
}


@dataclass(frozen=True, slots=True)
class Measured:
    """What the header says of one image, EXIF orientation already applied."""

    height: int
    width: int
    traits: Trait = NONE


def upright(height: int, width: int, orientation: int, traits: Trait = NONE) -> Measured:
    """An image of this size as stored, turned by its EXIF orientation (1: as it is)."""
    if 1 < orientation <= 8:
        traits |= Trait.TURNED
    return Measured(width, height, traits) if orientation in SIDEWAYS else Measured(height, width, traits)


def traits_of(image: Image.Image) -> Trait:
    """The traits of an opened image, its orientation aside; its pixels need not be decoded."""
    found = NONE
    if image.mode == "F" or image.mode.startswith("I"):  # I;16, I;16B, I
        found |= Trait.DEEP_GREY
    if image.has_transparency_data:
        found |= Trait.ALPHA
    return found


def said(counts: Mapping[Trait, int]) -> list[str]:
    """A sentence for each trait that images have, with their number."""
    return [f"{counts[trait]:,} images {text}" for trait, text in _SAID.items() if counts.get(trait)]
