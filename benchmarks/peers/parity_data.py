"""What LLaMA-Factory and Triptych both read in ``parity.py``: a model folder, images, records, dataset_info.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from models import write_folder

from headers import photo
from triptych.quickstart.tiny import make_tiny_tokenizer
from workload import WORDS

SIZES: dict[str, Any] = {
    "text": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "vocab_size": 640},
    "heads": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "vision": {"depth": 2, "embed_dim": 64, "num_heads": 4},
}
MODEL_PIXELS = 1280 * 28 * 28
OTHER_LANGUAGES = ("请比较这两张图片。", "第一张图里有什么？", "Was hat sich geändert?", "¿Qué imagen es más nueva?")
SYSTEMS = ("Be brief.", "You compare images.\nAnswer in one sentence.", "用中文回答。")
COLUMNS = {"messages": "conversations", "images": "images"}
TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "U", "assistant_tag": "A", "system_tag": "S"}
TAG_OF = {"human": "U", "gpt": "A", "system": "S"}
Record = dict[str, Any]


def write_all(folder: Path) -> None:
    """Write ``model/`` and ``data/`` with their lists; everything follows from fixed seeds.

    Sets: ``pairs`` (48 records, images in all), ``tagged`` (24, named tags, some without images), ``mixed`` (48: text
    alone, a system prompt, several turns) and ``many`` (200 conversations for their ids).
    """
    texts = [" ".join(WORDS), *OTHER_LANGUAGES, *SYSTEMS]
    tokenizer = make_tiny_tokenizer(texts * 30, SIZES["text"]["vocab_size"])
    write_folder(folder / "model", SIZES, tokenizer, MODEL_PIXELS)
    data = folder / "data"
    (data / "images").mkdir(parents=True, exist_ok=True)
    sets = {
        "pairs": _records(data, "pairs", 48, seed=1, fewest=2),
        "tagged": _records(data, "tagged", 24, seed=2),
        "mixed": _records(data, "mixed", 48, seed=3),
        "many": _records(data, "many", 200, seed=4, fewest=2, most=6),
    }
    info: dict[str, Any] = {}
    for name, records in sets.items():
        info[name] = {"file_name": f"{name}.json", "formatting": "sharegpt", "columns": COLUMNS}
        if name == "tagged":
            info[name] |= {"columns": {"messages": "turns", "images": "images"}, "tags": TAGS}
            records = [_tagged(record) for record in records]
        (data / f"{name}.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    (data / "dataset_info.json").write_text(json.dumps(info, indent=2))


def _records(data: Path, name: str, count: int, *, seed: int, fewest: int = 0, most: int = 4) -> list[Record]:
    """Conversations of one to three exchanges, with ``fewest`` to ``most`` images anywhere in the questions."""
    random = np.random.default_rng(seed)
    return [_record(data, f"{name}-{number}", random, fewest, most) for number in range(count)]


def _record(data: Path, name: str, random: np.random.Generator, fewest: int, most: int) -> Record:
    exchanges = int(random.integers(1, 4))
    images = [_image(data, f"{name}-{place}", random) for place in range(int(random.integers(fewest, most + 1)))]
    holders = np.sort(random.integers(0, exchanges, len(images)))
    turns: list[Record] = []
    if random.random() < 0.3:
        turns.append({"from": "system", "value": str(random.choice(SYSTEMS))})
    for exchange in range(exchanges):
        question = _with_marks(_words(random, 3, 15), int((holders == exchange).sum()), random)
        turns += [{"from": "human", "value": question}, {"from": "gpt", "value": " ".join(_words(random, 1, 20))}]
    return {"conversations": turns, "images": images}


def _words(random: np.random.Generator, fewest: int, most: int) -> list[str]:
    words = [str(word) for word in random.choice(WORDS, int(random.integers(fewest, most + 1)))]
    return [*words, str(random.choice(OTHER_LANGUAGES))] if random.random() < 0.3 else words


def _with_marks(words: Sequence[str], images: int, random: np.random.Generator) -> str:
    """The words with a mark for each image, at random places between them."""
    parts = list(words)
    for place in sorted(random.integers(0, len(parts) + 1, images), reverse=True):
        parts.insert(int(place), "<image>")
    return " ".join(parts)


def _image(data: Path, name: str, random: np.random.Generator) -> str:
    """Write an image of 60 to 400 px a side; returns its name in ``data``."""
    height, width = (int(side) for side in random.integers(60, 401, 2))
    place = f"images/{name}.{'jpg' if random.random() < 0.5 else 'png'}"
    photo(height, width, random).save(data / place)
    return place


def _tagged(record: Record) -> Record:
    turns = [{"role": TAG_OF[turn["from"]], "content": turn["value"]} for turn in record["conversations"]]
    return {"turns": turns, "images": record["images"]}
