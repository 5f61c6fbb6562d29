"""A LLaMA-Factory run file, with all that it names, as settings."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triptych.compat.llamafactory.checks import UnsupportedKeyError
from triptych.compat.llamafactory.filled import fill
from triptych.compat.llamafactory.translate import Surroundings, Translation, translate
from triptych.sources import storage
from triptych.sources.lists import dataset_info
from triptych.sources.lists.dataset_info import Listed
from triptych.sources.lists.entries import read_entries

TELLING = ("stage", "finetuning_type", "dataset", "template", "do_train", "cutoff_len", "export_dir", "infer_backend")
"""Keys that no run file of Triptych has, nor one of transformers' scripts."""
GROUPS = ("model", "data", "batch")
"""Groups of a native run file."""


def recognised(content: Mapping[str, Any]) -> bool:
    """Whether this is the content of a LLaMA-Factory run file."""
    if any(isinstance(content.get(group), Mapping) for group in GROUPS):
        return False
    telling = sum(key in content for key in TELLING)
    return telling >= 2 or (telling == 1 and "model_name_or_path" in content)


def read(given: Mapping[str, Any], world_size: int = 1) -> Translation:
    """Translate the content of a run file, its references replaced.

    Args:
        given: keys of the file.
        world_size: ranks that will share the rows.

    Raises:
        UnknownKeyError, OtherStageError, UnsupportedKeyError, ContradictionError: see ``checks``.
        ConfigError: for a data set that dataset_info.json does not hold, or cannot be read here.
    """
    values = fill(given)
    train, held_out = (_listed(values, name) for name in ("dataset", "eval_dataset"))
    around = Surroundings(train, held_out, _config(values["model_name_or_path"]), world_size)
    return translate(values, around)


def resume_from(given: Mapping[str, Any]) -> str | None:
    """The checkpoint that the file wants to go on from: a path, ``last`` for the last one, None for what there is.

    ``false`` and ``null`` ask for nothing.
    """
    wanted = given.get("resume_from_checkpoint")
    if wanted in (None, False, "false", "null", ""):
        return None
    return "last" if wanted in (True, "true") else str(wanted)


def _listed(values: Mapping[str, Any], key: str) -> list[Listed]:
    """The sources of data sets; none, while the values themselves are to be refused first."""
    names, folder = values[key], values["dataset_dir"]
    if not names or values["stage"] != "sft" or not values["do_train"]:
        return []
    if isinstance(folder, Mapping):
        return [dataset_info.entry_source(folder, name, "dataset_dir", ".") for name in names]
    folder = str(folder)
    if folder == "ONLINE" or folder.startswith("REMOTE:"):
        raise UnsupportedKeyError(
            f"`dataset_dir: {folder}` is not supported: download the data (`hf download NAME --repo-type dataset "
            f"--local-dir DIR`) and list it in DIR/{dataset_info.FILE}"
        )
    place = storage.join(folder, dataset_info.FILE)
    entries = read_entries(place)
    return [dataset_info.entry_source(entries, name, place) for name in names]


def _config(path: str | None) -> Mapping[str, Any] | None:
    """config.json of a model folder, or of what the hub's cache holds; nothing is fetched for it."""
    if not path:
        return None
    found: Any = Path(path) / "config.json"
    if not os.path.isdir(path) and path.count("/") == 1:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(path, "config.json")
    try:
        content = json.loads(Path(found).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return None  # said when the model is read
    return content if isinstance(content, dict) else None
