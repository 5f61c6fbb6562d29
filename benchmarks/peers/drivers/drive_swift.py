"""One run of ms-swift: its ``sft_main`` on its own arguments, with a meter.

python drive_swift.py RUN.json
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import meter


def main() -> None:
    run = json.loads(Path(sys.argv[1]).read_text())
    # What its documentation names for Qwen-VL. `--max_pixels` resizes twice, to other sizes than everybody else's.
    os.environ["MAX_PIXELS"] = str(run["max_pixels"])
    meter.install(run["events"], start_only=run["start_only"])
    from swift.pipelines import sft_main
    from swift.template.templates.qwen import Qwen2VLTemplate

    # The released vocabulary's ids are constants of its template. In a smaller vocabulary it would find no image and,
    # without a word, train on one token for each.
    Qwen2VLTemplate.image_token_id = json.loads((Path(run["model"]) / "config.json").read_text())["image_token_id"]

    settings = {
        "model": run["model"],
        "model_type": "qwen2_vl",
        "template": "qwen2_vl",
        "tuner_type": "full",  # tower and merger are frozen unless one says otherwise
        "torch_dtype": "float32",
        "attn_impl": "sdpa",
        "dataset": run["data"],
        "split_dataset_ratio": 0,
        "dataset_shuffle": False,
        "train_dataloader_shuffle": False,
        "max_length": run["max_tokens"],
        "per_device_train_batch_size": run["samples_per_step"],
        "gradient_accumulation_steps": 1,
        "max_steps": run["steps"],
        "learning_rate": 1e-4,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "check_model": False,
        "add_version": False,
        "use_cpu": True,
        "output_dir": run["output"],
    }
    arguments = []
    for name, value in {**settings, **run["settings"]}.items():
        arguments += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    sft_main(arguments)


if __name__ == "__main__":
    main()
