"""One run of LLaMA-Factory: its own ``run_exp`` on its own settings, with a meter.

python drive_llamafactory.py RUN.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import meter


def main() -> None:
    run = json.loads(Path(sys.argv[1]).read_text())
    data, output = Path(run["data"]), Path(run["output"])
    output.mkdir(parents=True)
    columns = {"messages": "conversations", "images": "images"}
    info = {"work": {"file_name": str(data), "formatting": "sharegpt", "columns": columns}}
    (output / "dataset_info.json").write_text(json.dumps(info))
    meter.install(run["events"], start_only=run["start_only"])
    from llamafactory.train.tuner import run_exp

    settings = {
        "model_name_or_path": run["model"],
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",  # tower and merger are frozen unless one says otherwise
        "template": "qwen2_vl",
        "dataset": "work",
        "dataset_dir": str(output),
        "media_dir": run["media_dir"],
        "disable_shuffling": True,
        "cutoff_len": run["max_tokens"],
        "image_max_pixels": run["max_pixels"],
        "per_device_train_batch_size": run["samples_per_step"],
        "gradient_accumulation_steps": 1,
        "max_steps": run["steps"],
        "learning_rate": 1e-4,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "output_dir": str(output / "run"),
    }
    run_exp({**settings, **run["settings"]})


if __name__ == "__main__":
    main()
