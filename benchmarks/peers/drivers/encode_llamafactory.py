"""Ids and labels of a LLaMA-Factory run file's data, as it trains on them: one JSON line per sample, in their order.

python encode_llamafactory.py THEIR.yaml OUT.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    import yaml
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    content = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
    model, data, training, *_ = get_train_args(content)
    module = load_tokenizer(model)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data)
    found = get_dataset(template, model, data, training, stage="sft", **module)
    with Path(sys.argv[2]).open("w", encoding="utf-8") as file:
        for sample in found["train_dataset"]:
            file.write(json.dumps({"input_ids": sample["input_ids"], "labels": sample["labels"]}) + "\n")


if __name__ == "__main__":
    main()
