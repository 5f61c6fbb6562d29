"""Write model folders as a release of transformers writes them; run in an environment that has this release.

    python tests/releases/make.py

For each family, ``tests/releases/<release>/<family>`` then holds the small files that ``save_pretrained`` wrote, the
names and shapes of the weights (`weights.py` makes their values, so that they need not be stored), and the logits of
``QUESTION``. The configs set as little as a tiny model needs: all else equals the classes' defaults, which releases
leave out of ``config.json``.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from weights import QUESTION, fill, inputs

HERE = Path(__file__).parent
TOKENIZER = HERE.parents[1] / "src/triptych/assets/tiny_base"
TEXT: dict[str, Any] = {
    "vocab_size": 600,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 593,
    "eos_token_id": 592,
}
# Heads of 8, of which rotary embedding has 4 pairs for time, height and width.
ROPE = {"type": "mrope", "mrope_section": [2, 1, 1]}
IDS = {"image_token_id": 598, "video_token_id": 599, "vision_start_token_id": 595, "vision_end_token_id": 596}
VISION: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2},
    "qwen2_5_vl": {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "fullatt_block_indexes": [1],
    },
}
CLASSES = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL"}
KEPT = ("*.json", "*.jinja")


def make_config(family: str) -> Any:
    """A config of a tiny model; older releases keep the language model's values among those of the whole."""
    config_class = getattr(transformers, f"{CLASSES[family]}Config")
    vision = VISION[family]
    if "text_config" in getattr(config_class, "sub_configs", ()) or hasattr(config_class, "sub_configs_defaults"):
        rope = (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [2, 1, 1]}}
            if int(transformers.__version__.partition(".")[0]) >= 5
            else {"rope_scaling": dict(ROPE)}
        )
        return config_class(text_config={**TEXT, **rope}, vision_config=vision, **IDS)
    return config_class(**TEXT, rope_scaling=dict(ROPE), vision_config=vision, **IDS)


def make(family: str, target: Path) -> None:
    """One folder."""
    torch.manual_seed(0)
    model = getattr(transformers, f"{CLASSES[family]}ForConditionalGeneration")(make_config(family)).eval()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model.save_pretrained(folder)
        shapes = fill(folder)
        model = type(model).from_pretrained(folder, torch_dtype=torch.float32).eval()
        with torch.no_grad():
            logits = model(**inputs(model)).logits[0, -len(QUESTION) :]
        transformers.Qwen2VLImageProcessor().save_pretrained(folder)
        save_tokenizer(folder)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for pattern in KEPT:
            for file in folder.glob(pattern):
                if file.name not in ("tokenizer.json", "vocab.json", "model.safetensors.index.json"):
                    shutil.copy(file, target)
    answer = {"tensors": shapes, "logits": [[round(value, 7) for value in row[::25]] for row in logits.tolist()]}
    (target / "answer.json").write_text(json.dumps(answer) + "\n")


def save_tokenizer(folder: Path) -> None:
    """The tokenizer of the quickstart's model, with the settings files of this release."""
    about = json.loads((TOKENIZER / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer = transformers.Qwen2TokenizerFast(
        tokenizer_file=str(TOKENIZER / "tokenizer.json"),
        eos_token=about["eos_token"],
        pad_token="<|endoftext|>",
        chat_template=(TOKENIZER / "chat_template.jinja").read_text(encoding="utf-8"),
    )
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    for name in CLASSES:
        if hasattr(transformers, f"{CLASSES[name]}Config"):
            make(name, HERE / transformers.__version__ / name)
