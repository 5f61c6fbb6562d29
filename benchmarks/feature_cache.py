"""How much faster is an epoch when the frozen tower's features are kept, and what does the first one pay for it?

Method: a random Qwen2-VL with the proportions of the 2B model (language layers 1.31 B, head 0.23 B, tower with merger
0.67 B parameters; four patches per token), about a sixtieth of its size and as wide heads. Since attention and merger
do not shrink like the rest, the tower is sized by its share of an epoch's FLOPs: both models' shares, counted by
`FlopCounter`, are printed, and the parameters. LoRA of rank 8 (16, as the width is half) on the language layers, one
sample per step, 1 to 8 photo-like JPEGs each (workload.py), 262,144 pixels per image, every image shown once per
epoch, two workers. Runs of two epochs with `train.feature_cache` off and auto take turns, each of the latter with an
empty store; seconds per epoch are images over images per second of the run's own log. Medians over the rounds, ratios
within a round.

    python benchmarks/feature_cache.py

takes some five minutes on two cores that do nothing else. Then the parts of a step are run alone, row by row, on one
thread, and their CPU seconds taken, which other work on the machine hardly moves: they say what is left of a step, and
`--rounds 0` takes them alone.
Result: benchmarks/results/feature_cache.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from triptych.family.shapes import read_shapes
from triptych.forward.batch import Batch, RowFeatures, build_batch
from triptych.forward.feature_cache import FeatureCache, FeatureWriter
from triptych.forward.flops import FlopCounter
from triptych.forward.row_forward import RowForward
from triptych.model.loading import PixelNormalizer, load_model
from triptych.model.parts import part_of
from triptych.model.trainable import set_up_training
from triptych.quickstart.tiny import IMAGE_PROCESSOR, make_tiny_tokenizer
from triptych.rows.feature_store import FeatureReader
from triptych.run.feature_forecast import feature_shape
from triptych.run.prepare import Prepared, prepare
from triptych.run.settings import RunSettings
from triptych.terminal import Terminal
from triptych.training.train import train
from workload import WORDS, commit, write_pool, write_records

MAX_PIXELS = 262_144
RESULTS = Path(__file__).parent / "results" / "feature_cache.jsonl"

MARKS = {
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
}
SMALL: dict[str, Any] = {
    "text": {"hidden_size": 768, "intermediate_size": 4480, "num_hidden_layers": 2, "vocab_size": 5460},
    "heads": {"num_attention_heads": 6, "num_key_value_heads": 1},
    "vision": {"depth": 6, "embed_dim": 320, "num_heads": 4},
}
HEAD = SMALL["text"]["hidden_size"] * SMALL["text"]["vocab_size"]
REAL: dict[str, Any] = {
    "text": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "vocab_size": 151_936},
    "heads": {"num_attention_heads": 12, "num_key_value_heads": 2},
    "vision": {"depth": 32, "embed_dim": 1280, "num_heads": 16},
}


def make_model(sizes: dict[str, Any], ids: dict[str, int]) -> Qwen2VLForConditionalGeneration:
    """A random Qwen2-VL of these sizes."""
    half = sizes["text"]["hidden_size"] // sizes["heads"]["num_attention_heads"] // 2
    sections = [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    config = Qwen2VLConfig(
        text_config={**sizes["text"], **sizes["heads"], "rope_parameters": rope, "max_position_embeddings": 32768},
        vision_config={**sizes["vision"], "hidden_size": sizes["text"]["hidden_size"], "mlp_ratio": 4},
        **{f"{name}_token_id": ids[mark] for name, mark in MARKS.items()},
        tie_word_embeddings=True,
    )
    return Qwen2VLForConditionalGeneration(config)


def write_work(folder: Path, samples: int) -> dict[str, Any]:
    """The model and the samples in ``folder``; returns the run file's content."""
    tokenizer = make_tiny_tokenizer([" ".join(WORDS)] * 50, SMALL["text"]["vocab_size"])
    torch.manual_seed(0)
    make_model(SMALL, tokenizer.get_vocab()).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    limits = {"size": {"shortest_edge": 56 * 56, "longest_edge": MAX_PIXELS}}
    (folder / "model" / "preprocessor_config.json").write_text(json.dumps({**IMAGE_PROCESSOR, **limits}))
    write_records(folder / "drawn.jsonl", samples, ["x.jpg"])
    records = [json.loads(line) for line in (folder / "drawn.jsonl").read_text().splitlines()]
    pool = iter(write_pool(folder / "images", sum(len(record["images"]) for record in records)))
    for record in records:
        record["images"] = [f"images/{next(pool)}" for _ in record["images"]]
    (folder / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return {
        "model": {"path": str(folder / "model"), "train": "lora", "freeze": ["vision", "merger"], "lora": {"rank": 8}},
        "data": {"train": [{"path": str(folder / "train.jsonl")}], "workers": 2},
        "batch": {"samples": 1},
        "train": {"epochs": 2, "learning_rate": 1e-4, "log_every": samples, "save_every": 10**6},
        "output": str(folder / "run"),
    }


def epochs(content: dict[str, Any], cache: Path, *, keep: bool) -> tuple[list[float], list[dict[str, Any]]]:
    """Seconds of each epoch, and its log line."""
    os.environ["TRIPTYCH_CACHE"] = str(cache)
    train_settings = {**content["train"], "feature_cache": "auto" if keep else "off"}
    settings = RunSettings.model_validate({**content, "train": train_settings})
    prepared = prepare(settings, ("train",), Terminal())
    images = int(prepared.corpora["train"].image_counts.sum())
    train(settings, prepared, Terminal())
    lines = [json.loads(line) for line in (Path(settings.output) / "log.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "loss" in line]
    return [images / line["images_per_second"] for line in logged], logged


class Parts:
    """The parts of a step, one row at a time."""

    def __init__(self, content: dict[str, Any], cache: Path) -> None:
        os.environ["TRIPTYCH_CACHE"] = str(cache)
        self.settings = RunSettings.model_validate(content)
        self.prepared: Prepared = prepare(self.settings, ("train",), Terminal())
        files = self.prepared.files
        model = load_model(self.settings.model)
        self.model = set_up_training(model, files.family, self.settings.model, torch.float32)
        shape, normalizer, merge = (
            feature_shape(read_shapes(model.config.to_dict())),
            PixelNormalizer(files),
            files.geometry.merge_size,
        )
        self.reader = FeatureReader(cache / "parts", shape)
        self.writer = FeatureWriter(cache / "parts", 10**10)
        self.plain = RowForward(normalizer)
        self.features = FeatureCache(model, normalizer, merge, torch.float32, self.reader, self.writer)
        self.keeping = RowForward(normalizer, features=self.features)
        self.seconds: dict[str, float] = {}

    def run(self) -> dict[str, float]:
        """CPU seconds per epoch of each part, on one thread."""
        torch.set_num_threads(1)
        corpus = self.prepared.corpora["train"]
        for index in range(len(corpus)):
            whole = self._timed("decode and resize", lambda index=index: self._row(index, None))
            missing = self._row(index, self.reader)
            self._timed("tower, images one by one", lambda row=missing: self.features.complete(row))
            self._timed("tower, images together", lambda row=whole: self._together(row))
            self.writer.close()
            known = self._timed("read features", lambda index=index: self._row(index, self.reader))
            for name, forward, row in (("without", self.plain, whole), ("with", self.keeping, known)):
                loss = self._timed(f"forward {name} cache", lambda f=forward, r=row: f.summed_loss(self.model, r))
                self._timed(f"backward {name} cache", loss.backward)
                self.model.zero_grad()
        return self.seconds

    def _together(self, row: Batch) -> None:
        with torch.no_grad():
            base = self.features.model
            base.get_image_features(self.features.normalizer(row.pixels), row.image_grid_thw, return_dict=True)

    def parameters(self) -> dict[str, int]:
        """Weights of each part."""
        counts: dict[str, int] = {"head": HEAD, "language": -HEAD}
        for name, parameter in self.features.model.named_parameters():
            part = part_of(name, self.prepared.files.family)
            counts[part] = counts.get(part, 0) + (0 if ".lora_" in name else parameter.numel())
        return counts

    def tower_share(self, sizes: dict[str, Any]) -> float:
        """Share of the tower in the FLOPs of an epoch of a model of these sizes."""
        with torch.device("meta"):
            model = make_model(sizes, dict.fromkeys(MARKS.values(), 0))
            model = set_up_training(model, self.prepared.files.family, self.settings.model, torch.float32)
        counter = FlopCounter(model, self.prepared.files.family, model.config)
        rows = [self._row(index, None) for index in range(len(self.prepared.corpora["train"]))]
        blind = RowFeatures(torch.empty(1, 0, 0), (), (), ())
        without = [counter.row(replace(row, pixels=row.pixels[:0], features=blind)) for row in rows]
        return 1 - sum(without) / sum(counter.row(row) for row in rows)

    def _row(self, index: int, store: FeatureReader | None) -> Batch:
        corpus, filler = self.prepared.corpora["train"], self.prepared.encoder.template.filler()
        return build_batch(corpus, [index], filler=filler, store=store)

    def _timed(self, name: str, work: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = work()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - began
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Time epochs with and without the feature cache.")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        content = write_work(folder, options.samples)
        for number in range(options.rounds):
            (_, off), _ = epochs(content, folder / "off", keep=False)
            (first, second), logged = epochs(content, folder / f"on-{number}", keep=True)
            rounds.append({"off": off, "first": first, "second": second, "data_wait": logged[1]["data_wait"]})
            print("off {off:6.1f} s   first {first:6.1f} s   second {second:6.1f} s".format(**rounds[-1]))
        parts = Parts(content, folder / "off")
        cpu = parts.run()
        without, kept = (
            sum(cpu[f"{way} {name} cache"] for way in ("forward", "backward")) for name in ("without", "with")
        )
        entry = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "commit": commit(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "samples": options.samples,
            "images": int(parts.prepared.corpora["train"].image_counts.sum()),
            "parameters": parts.parameters(),
            "tower_share": parts.tower_share(SMALL),
            "tower_share_2b": parts.tower_share(REAL),
            "rounds": rounds,
            "cpu_speedup": (without + cpu["decode and resize"]) / (kept + cpu["read features"]),
            "parts_cpu_seconds": cpu,
        }
    if rounds:
        entry["first_epoch_ratio"] = statistics.median(each["first"] / each["off"] for each in rounds)
        entry["second_epoch_speedup"] = statistics.median(each["off"] / each["second"] for each in rounds)
    for key, value in entry.items():
        if not isinstance(value, (dict, list)):
            print(f"{key:22} {value}")
    print(f"{'parameters':22} {entry['parameters']}")
    for key, value in entry["parts_cpu_seconds"].items():
        print(f"  {key:26} {value:6.2f} CPU s per epoch")
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    main()
