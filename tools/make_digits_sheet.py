"""Store scikit-learn's copy of the UCI handwritten digits as one small grey image and a text file.

    python tools/make_digits_sheet.py src/triptych/assets/digits

The only place that needs scikit-learn. Lossless: a grey level of 0 to 16 becomes a pixel of 0 to 240.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

COLUMNS = 60
PIXEL_PER_LEVEL = 15


def main(folder: Path) -> None:
    digits = load_digits()
    scans = digits.images.astype(np.uint8)
    rows = -(-len(scans) // COLUMNS)
    cells = np.zeros((rows * COLUMNS, 8, 8), np.uint8)
    cells[: len(scans)] = scans * PIXEL_PER_LEVEL
    sheet = cells.reshape(rows, COLUMNS, 8, 8).transpose(0, 2, 1, 3).reshape(rows * 8, COLUMNS * 8)

    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(folder / "sheet.png", optimize=True)
    labels = "".join(map(str, digits.target))
    lines = [labels[start : start + COLUMNS] for start in range(0, len(labels), COLUMNS)]
    (folder / "labels.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
