"""How long until the exact length of every sample is known: `triptych index` against LLaMA-Factory's tokenization?

    python benchmarks/index_peer.py --install peer                      once: a virtual environment with LLaMA-Factory
    python benchmarks/index_peer.py --peer peer --tokenizer Qwen2-VL    measure both

Method: the same records and images (workload.py), the same folder with Qwen2-VL's tokenizer, 262,144 pixels per
image, every cache empty, files in the page cache. LLaMA-Factory runs its own `get_dataset` with two processes of one
thread (on two cores about twice as fast as with torch's own number), up to where it would load the model; Triptych runs
as the command. The sides take turns; medians over the repeats. Per sample:

    phase      the whole process less the same process over two records, one per process: imports do not count, nor the
               loading of the tokenizer (nor the seconds in which LLaMA-Factory hashes it and hands it to its processes)
    process    the whole process

Result: benchmarks/results/index_peer.jsonl, which also holds the time inside `get_dataset`, with that hashing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from workload import write_pool, write_records

RESULTS = Path(__file__).parent / "results" / "index_peer.jsonl"
MAX_PIXELS = 262_144
PEER_PROCESSES = 2
PEER = "llamafactory==0.9.5"
PEER_VERSIONS = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0", "transformers==5.6.0")
"""The newest transformers that this LLaMA-Factory takes, and the three torches of one release."""

TRIPTYCH_RUNS = 4
"""In each repeat: they are short, so one alone says little."""
TRIPTYCH_PROGRAM = ("-m", "triptych", "index")
PEER_PROGRAM = """
import json, sys, time
began = time.perf_counter()
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer
imported = time.perf_counter()
model, data, training, _, _ = get_train_args(json.load(open(sys.argv[1])))
tokenizer = load_tokenizer(model)
template = get_template_and_fix_tokenizer(tokenizer["tokenizer"], data)
ready = time.perf_counter()
samples = get_dataset(template, model, data, training, stage="sft", **tokenizer)["train_dataset"]
done = time.perf_counter()
times = {"imports": imported - began, "get_dataset": done - ready, "samples": len(samples)}
json.dump(times, open(sys.argv[2], "w"))
"""
"""The first lines of LLaMA-Factory's `run_sft`, timed: settings file, file for the times."""


def install(folder: Path) -> None:
    """Make a virtual environment in ``folder`` and install LLaMA-Factory there."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pinned = folder / "constraints.txt"
    pinned.write_text("\n".join(PEER_VERSIONS) + "\n")
    subprocess.run([folder / "bin" / "pip", "install", "--quiet", "--constraint", pinned, PEER], check=True)


def write_model(folder: Path, tokenizer: Path) -> None:
    """Everything of a Qwen2-VL folder but its weights, which neither side reads."""
    from transformers import Qwen2VLConfig

    from triptych.quickstart.tiny import CHAT_TEMPLATE, IMAGE_PROCESSOR

    Qwen2VLConfig(architectures=["Qwen2VLForConditionalGeneration"]).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)
    processor = {**IMAGE_PROCESSOR, "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def run(command: Sequence[str | Path], folder: Path, **environment: str) -> float:
    """Run a command, its output kept in ``folder``; the seconds it took.

    Raises:
        RuntimeError: with the end of the output, if the command fails.
    """
    output = folder / "output.txt"
    began = time.perf_counter()
    with output.open("w") as file:
        code = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        ).returncode
    seconds = time.perf_counter() - began
    if code:
        raise RuntimeError(f"{command[0]} ended with status {code}:\n{output.read_text()[-3000:]}")
    return seconds


def run_peer(python: Path, model: Path, data: Path, media_dir: Path) -> dict[str, float]:
    """Seconds of LLaMA-Factory's preparation of ``data``: imports, get_dataset, process; and the samples it made."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        columns = {"messages": "conversations", "images": "images"}
        info = {"work": {"file_name": str(data), "formatting": "sharegpt", "columns": columns}}
        (folder / "dataset_info.json").write_text(json.dumps(info))
        settings = {
            "model_name_or_path": str(model),
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "lora",
            "dataset": "work",
            "dataset_dir": name,
            "media_dir": str(media_dir),
            "template": "qwen2_vl",
            "cutoff_len": 8192,
            "image_max_pixels": MAX_PIXELS,
            "preprocessing_num_workers": PEER_PROCESSES,
            "output_dir": str(folder / "output"),
            "report_to": "none",
            "use_cpu": True,
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        command = [python, "-c", PEER_PROGRAM, folder / "settings.json", folder / "times.json"]
        environment = {
            "HF_HOME": str(folder / "cache"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": "",
        }
        process = run(command, folder, **environment)
        times: dict[str, float] = json.loads((folder / "times.json").read_text())
        return {**times, "process": process}


def run_triptych(model: Path, data: Path, media_dir: Path) -> dict[str, float]:
    """Seconds of the command over ``data``, with an empty cache."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = {
            "model": {"path": str(model)},
            "data": {"train": [{"path": str(data), "media_dir": str(media_dir)}], "max_pixels": MAX_PIXELS},
            "batch": {"tokens": 8192, "patches": 32768},
            "output": str(folder / "output"),
        }
        file = folder / "run.yaml"
        file.write_text(json.dumps(settings))  # JSON is YAML
        command = [sys.executable, *TRIPTYCH_PROGRAM, file]
        return {"process": run(command, folder, TRIPTYCH_CACHE=str(folder / "cache"))}


def measure(peer: Path, tokenizer: Path, samples: int, files: int, repeats: int) -> dict[str, dict[str, float]]:
    """Medians of what both sides report over all records, with ``phase`` added.

    Raises:
        RuntimeError: if a side fails, or LLaMA-Factory left samples out.
    """
    with tempfile.TemporaryDirectory() as name:
        work, model = Path(name), Path(name) / "model"
        model.mkdir()
        write_model(model, tokenizer)
        images = [f"images/{image}" for image in write_pool(work / "images", files)]
        few, data = work / "few.jsonl", work / "train.jsonl"
        write_records(data, samples, images)
        write_records(few, PEER_PROCESSES, images)
        sides: dict[str, Callable[[Path], dict[str, float]]] = {
            "triptych": lambda path: run_triptych(model, path, work),
            "llamafactory": lambda path: run_peer(peer / "bin" / "python", model, path, work),
        }
        runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for _ in range(repeats):
            for side, prepare in sides.items():
                for _ in range(TRIPTYCH_RUNS if side == "triptych" else 1):
                    start, whole = prepare(few), prepare(data)
                    if whole.get("samples", samples) != samples:
                        raise RuntimeError(f"{side} made {whole['samples']} samples of {samples} records")
                    phase = whole["process"] - start["process"]
                    runs[side].append({**whole, "start": start["process"], "phase": phase})
    return {
        side: {part: statistics.median(run[part] for run in times) for part in times[0]} for side, times in runs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", type=Path, metavar="DIR", help="make an environment with the peer, then end")
    parser.add_argument("--peer", type=Path, metavar="DIR", help="virtual environment that holds the peer")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="folder with Qwen2-VL's tokenizer.json")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--files", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.install:
        install(arguments.install)
        return
    if not arguments.peer or not arguments.tokenizer:
        parser.error("give --install DIR, or --peer DIR and --tokenizer DIR")
    seconds = measure(arguments.peer, arguments.tokenizer, arguments.samples, arguments.files, arguments.repeats)
    parts = ("phase", "process")
    per_sample = {
        side: {part: times[part] / arguments.samples * 1e3 for part in parts} for side, times in seconds.items()
    }
    ratio = {part: per_sample["llamafactory"][part] / per_sample["triptych"][part] for part in parts}
    print(f"{'per sample':14}{'phase':>12}{'process':>12}")
    for side, times in per_sample.items():
        print(f"{side:14}{times['phase']:9.3f} ms{times['process']:9.3f} ms")
    print(f"{'ratio':14}{ratio['phase']:12.1f}{ratio['process']:12.1f}")
    entry = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "triptych": " ".join(TRIPTYCH_PROGRAM),
        "peer": [PEER, *PEER_VERSIONS],
        "transformers": version("transformers"),
        "samples": arguments.samples,
        "files": arguments.files,
        "repeats": arguments.repeats,
        "seconds": seconds,
        "ms_per_sample": per_sample,
        "ratio": ratio,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    main()
