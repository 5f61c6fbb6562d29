"""One run of TRL: its ``SFTTrainer`` as its documentation shows it for images, with a meter.

    python drive_trl.py RUN.json

The records are in the shape that TRL takes as it is (``messages`` with parts, ``images`` as paths that ``datasets``
opens when a sample is read), so that nothing has to be converted. TRL freezes nothing itself; the script does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import meter


def main() -> None:
    run = json.loads(Path(sys.argv[1]).read_text())
    meter.install(run["events"], start_only=run["start_only"])
    from datasets import Image, List, load_dataset
    from transformers import AutoProcessor, Qwen2VLForConditionalGeneration
    from trl import SFTConfig, SFTTrainer

    data = load_dataset("json", data_files=run["data"], split="train").cast_column("images", List(Image()))
    model = Qwen2VLForConditionalGeneration.from_pretrained(run["model"], dtype="float32")
    model.model.visual.requires_grad_(False)
    settings = {
        "output_dir": run["output"],
        "max_length": run["max_tokens"],
        "assistant_only_loss": True,
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": run["samples_per_step"],
        "max_steps": run["steps"],
        "learning_rate": 1e-4,
        "bf16": False,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
    }
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**{**settings, **run["settings"]}),
        train_dataset=data,
        processing_class=AutoProcessor.from_pretrained(run["model"]),
    )
    trainer.train()


if __name__ == "__main__":
    main()
