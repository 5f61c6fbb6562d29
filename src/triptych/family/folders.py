"""What a folder is that a user names: a model, adapters, a run; and which one they meant, where it is another."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triptych.errors import ConfigError, ModelError

STATE = "triptych.json"
"""What Triptych notes in a checkpoint about its run."""
CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"

_QUANTISED = re.compile(
    r"[-_.](unsloth|bnb|awq|gptq|autoround|fp8|nvfp4|mxfp4|int[248]|w\d+a\d+|[248]-?bits?|dynamic)$",
    re.IGNORECASE,
)


def check_not_quantised(config: Mapping[str, Any], path: str) -> None:
    """Weights that were packed into a few bits cannot be trained on: only their plain release can.

    Args:
        config: the content of ``config.json``.
        path: model folder or hub name; for the message.

    Raises:
        ModelError: if the model is quantised, naming the method and the plain release.
    """
    found = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")
    if not found:
        return
    method = found.get("quant_method") or "bitsandbytes"
    plain = _plain_name(path)
    use = f"use {plain}, the plain release" if plain else "use the plain release that it was made from"
    raise ModelError(
        f"{path} is quantised ({method} in its config.json), and packed weights cannot be trained or merged: {use}; "
        "`model.train: qlora` packs a plain model into 4 bits itself"
    )


def why_no_model(folder: Path) -> str | None:
    """Why an existing folder is no model, and which is meant; None if it is one, as far as its names tell."""
    if (folder / CONFIG).exists():
        return None
    if (folder / ADAPTER_CONFIG).exists():
        base = adapter_base(folder)
        return (
            f"{folder} holds adapters, not a model. To go on training them: model.path: {base or 'their base'}, "
            f"model.adapter: {folder}; with train: full, they are merged first. To put new adapters on the merged "
            f"model: `triptych export {folder} --to OUT`, then model.path: OUT"
        )
    meant = trained_in(folder)
    if meant is not None:
        more = " (adapters: see model.adapter)" if (meant / ADAPTER_CONFIG).exists() else ""
        return f"{folder} is the folder of a run, not a model; did you mean {meant}?{more}"
    return None


def trained_in(folder: Path) -> Path | None:
    """The trained model of a run's folder: the final one, else that of the last checkpoint; None if there is none."""
    checkpoints = [found for found in folder.glob("checkpoint-*") if found.name.partition("-")[2].isdecimal()]
    checkpoints.sort(key=lambda found: int(found.name.partition("-")[2]), reverse=True)
    for found in (folder / "final", *checkpoints):
        if (found / CONFIG).exists() or (found / ADAPTER_CONFIG).exists():
            return found
    return None


def check_trained(folder: Path) -> None:
    """See that a folder holds what training leaves: a model, or adapters.

    Raises:
        ConfigError: naming the folder that is meant, where there is one.
    """
    if (folder / CONFIG).exists() or (folder / ADAPTER_CONFIG).exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"no model folder {folder}{_near(folder)}")
    raise ConfigError(why_no_model(folder) or f"{folder} holds neither a model nor adapters")


def why_missing(path: str) -> str:
    """What else might be meant by a path that does not exist: `` (did you mean ...?)``, or nothing."""
    return _near(Path(path))


def adapter_base(folder: Path) -> str | None:
    """The base that adapters say they belong to; None if they do not."""
    try:
        found = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        return None
    return str(found) if found else None


def read_json(folder: Path, name: str, path: str) -> dict[str, Any]:
    """A file of a model folder that holds a JSON object.

    Args:
        folder: where it is.
        name: of the file.
        path: the model as the user named it; for messages.

    Raises:
        ModelError: if it is missing, cannot be read, or holds something else.
    """
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path} has no {name}: it is not a complete model folder") from error
    except OSError as error:
        raise ModelError(f"cannot read {path}/{name}: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path}/{name} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}/{name} is not a JSON object")
    return content


def _near(path: Path) -> str:
    """Folders beside a missing one with a similar name."""
    try:
        names = [found.name for found in path.parent.iterdir() if found.is_dir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, names, n=1)
    return f" (did you mean {path.parent / close[0]}?)" if close else ""


def _plain_name(path: str) -> str | None:
    """A release's name without what names its quantisation; None if it has none."""
    name = path.rstrip("/")
    if Path(path).is_dir():
        name = Path(name).name
    plain = name
    while (shorter := _QUANTISED.sub("", plain)) != plain:
        plain = shorter
    return plain if plain != name else None
