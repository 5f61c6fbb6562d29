"""One run of Triptych: what ``triptych train RUN.yaml`` does, in its order, with a meter.

python drive_triptych.py RUN.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    run = json.loads(Path(sys.argv[1]).read_text())
    from triptych.run.environment import wait_asleep
    from triptych.run.prepare import prepare
    from triptych.run.settings import RunSettings
    from triptych.terminal import Terminal

    wait_asleep()
    train = {"learning_rate": 1e-4, "seed": run["seed"], "hf": {"max_steps": run["steps"]}}
    own = run["settings"]
    content = {
        "model": {"path": run["model"], "freeze": ["vision", "merger"], "precision": "float32"},
        "data": {
            "train": [{"path": run["data"], "media_dir": run["media_dir"]}],
            "max_tokens": run["max_tokens"],
            "max_pixels": run["max_pixels"],
        },
        "batch": own.get("batch", {"samples": run["samples_per_step"]}),
        "train": {**train, **own.get("train", {})},
        "output": run["output"],
    }
    settings = RunSettings.model_validate(content)
    prepared = prepare(settings, ("train",), Terminal())
    # transformers takes seconds to import; the command, too, imports it only now.
    import meter

    from triptych.training.train import train as run_training

    meter.install(run["events"], start_only=run["start_only"])
    run_training(settings, prepared, Terminal())


if __name__ == "__main__":
    main()
