"""Train the base model of the quickstart: it names the digit of one image. Run by `make tiny-base`.

Writes single images of the training scans and text exercises, trains the random tiny model on them with
`examples/tiny_base.yaml` through `triptych train`, and puts the result, in bfloat16, into the package.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from triptych.quickstart.dataset import write_base_dataset, write_dataset
from triptych.quickstart.run import SEED
from triptych.quickstart.tiny import write_tiny_model
from triptych.run.run_file import load
from triptych.sources.readers import read_records

ROOT = Path(__file__).parent.parent
WORK = ROOT / "runs" / "tiny-base"
TARGET = ROOT / "src" / "triptych" / "assets" / "tiny_base"
TRAIN_SAMPLES, TEST_SAMPLES = 70_000, 300


def texts(folder: Path) -> list[str]:
    """Every string of the quickstart's tasks: what the tokenizer's merges are learned from."""
    files = [
        write_dataset(folder / "tasks", train_samples=4_000, test_samples=0, seed=SEED).train,
        folder / "train.json",
    ]
    records = [record.data for path in files for record in read_records(str(path))]
    return [turn["value"].replace("<image>", "") for record in records for turn in record["conversations"]]


def triptych(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "triptych", *arguments], check=True, cwd=ROOT)


def install(final: Path) -> int:
    """Put a trained model into the package, its weights in bfloat16; returns its number of parameters."""
    shutil.rmtree(TARGET, ignore_errors=True)
    ignored = shutil.ignore_patterns("training_args.bin", "triptych.json", "run.yaml", "*.safetensors")
    shutil.copytree(final, TARGET, ignore=ignored)
    weights = load_file(final / "model.safetensors")
    small = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in weights.items()}
    save_file(small, TARGET / "model.safetensors", {"format": "pt"})
    config = json.loads((TARGET / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({**config, "dtype": "bfloat16"}, indent=2) + "\n"
    (TARGET / "config.json").write_text(text, encoding="utf-8")
    return sum(tensor.numel() for tensor in weights.values())


def main() -> None:
    shutil.rmtree(WORK, ignore_errors=True)
    write_base_dataset(WORK / "data", train_samples=TRAIN_SAMPLES, test_samples=TEST_SAMPLES, seed=SEED)
    write_tiny_model(WORK / "random", texts(WORK / "data"), seed=SEED)
    run_file = ROOT / "examples" / "tiny_base.yaml"
    triptych("train", str(run_file))
    triptych("eval", str(run_file))
    parameters = install(ROOT / load(run_file).output / "final")
    print(f"base model in {TARGET.relative_to(ROOT)}: {parameters:,} parameters")


if __name__ == "__main__":
    main()
