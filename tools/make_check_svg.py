"""Draw docs/images/check.svg: what `triptych check` really prints of a data set with some defects."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from triptych.quickstart.dataset import write_dataset

OUT = Path(__file__).parents[1] / "docs" / "images" / "check.svg"
COMMAND = ["check", "data/train.json"]
WIDTH = 118


def damage(data: Path) -> None:
    """What goes wrong with data: a lost image, a photo of a phone, marks that do not fit, a name in another case."""
    records = json.loads(data.read_text(encoding="utf-8"))
    images = [record["images"] for record in records]
    (data.parent / images[41][0]).unlink()
    (data.parent / images[97][1]).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    records[188]["images"].append(images[3][0])
    records[233]["images"][0] = images[233][0].replace("images/", "Images/")
    records[310]["conversations"][-1]["value"] = ""
    data.write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf-8")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder) / "data", train_samples=1200, test_samples=4, seed=1)
        damage(Path(folder) / "data" / "train.json")
        done = subprocess.run(
            [sys.executable, "-m", "triptych", *COMMAND], cwd=folder, capture_output=True, text=True, check=False
        )
    console = Console(record=True, width=WIDTH, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(Text(f"$ triptych {' '.join(COMMAND)}", style="bold"))
    console.print(Text(done.stderr.replace(f"{folder}/", "").rstrip()))
    svg = console.export_svg(title="triptych")
    # No font from elsewhere: the page must look the same without a network.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S).replace("Fira Code", "DejaVu Sans Mono, Menlo")
    OUT.write_text(re.sub(r"terminal-\d+", "terminal-check", svg), encoding="utf-8")


if __name__ == "__main__":
    main()
