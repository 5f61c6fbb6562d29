"""The embedded scans of handwritten digits, and images of them: varied in size, colour, tilt and file format."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

SCAN_PX = 8
PIXEL_PER_LEVEL = 15  # the sheet stores a grey level of 0 to 16 as a pixel of 0 to 240
HELD_OUT = 300

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """One handwritten digit: 8 x 8 grey levels, 0 for paper to 16 for ink."""

    number: int
    digit: int
    levels: np.ndarray


@cache
def load_scans() -> tuple[Scan, ...]:
    """All 1,797 scans, in the order of the sheet."""
    folder = files("triptych") / "assets" / "digits"
    digits = [int(digit) for digit in "".join(folder.joinpath("labels.txt").read_text().split())]
    sheet = np.asarray(Image.open(BytesIO(folder.joinpath("sheet.png").read_bytes()))) // PIXEL_PER_LEVEL
    rows, columns = sheet.shape[0] // SCAN_PX, sheet.shape[1] // SCAN_PX
    cells = sheet.reshape(rows, SCAN_PX, columns, SCAN_PX).transpose(0, 2, 1, 3).reshape(-1, SCAN_PX, SCAN_PX)
    return tuple(Scan(number, digit, cells[number]) for number, digit in enumerate(digits))


def split_scans() -> tuple[list[Scan], list[Scan]]:
    """The scans to train on and the held-out ones. Always the same, so that the base never sees a held-out scan."""
    scans = list(load_scans())
    Random(1998).shuffle(scans)
    return scans[HELD_OUT:], scans[:HELD_OUT]


def write_image(scan: Scan, path_without_suffix: Path, rng: Random) -> Path:
    """Draw a scan, sides of 56 to 84 pixels, and save it as a PNG or a JPEG. Returns the file's path."""
    image = draw(scan, rng)
    if rng.random() < 0.5:
        path = path_without_suffix.with_suffix(".png")
        image.save(path)
    else:
        path = path_without_suffix.with_suffix(".jpg")
        image.save(path, quality=rng.randint(80, 95))
    return path


def draw(scan: Scan, rng: Random) -> Image.Image:
    """The scan enlarged to fill the image, tilted and cropped a little, in dark ink on light paper."""
    width, height = rng.randint(56, 84), rng.randint(56, 84)
    edges = (
        rng.uniform(0, 0.4),
        rng.uniform(0, 0.4),
        SCAN_PX - rng.uniform(0, 0.4),
        SCAN_PX - rng.uniform(0, 0.4),
    )
    levels = Image.fromarray(scan.levels * PIXEL_PER_LEVEL)
    ink = levels.resize((width, height), Image.Resampling.BICUBIC, box=edges)
    ink = ink.rotate(rng.uniform(-8, 8), Image.Resampling.BILINEAR)

    paper_colour, ink_colour = _two_colours(rng)
    image = Image.new("RGB", (width, height), paper_colour)
    image.paste(ink_colour, mask=ink)
    return image


def _two_colours(rng: Random) -> tuple[Colour, Colour]:
    """Light paper and dark ink, each with a tint of its own."""
    paper = (rng.randint(190, 255), rng.randint(190, 255), rng.randint(190, 255))
    ink = (rng.randint(0, 100), rng.randint(0, 100), rng.randint(0, 100))
    return paper, ink
