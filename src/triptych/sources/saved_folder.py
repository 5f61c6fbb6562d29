"""The Arrow files of a folder that ``datasets`` saved."""

from __future__ import annotations

import os

import orjson

from triptych.errors import ConfigError


def folder_files(path: str) -> list[str]:
    """The Arrow files of a saved ``datasets`` folder in order; a file stands for itself.

    Raises:
        ConfigError: for a folder that is not one.
    """
    if not os.path.isdir(path):
        return [path]
    if os.path.exists(os.path.join(path, "dataset_dict.json")):
        with open(os.path.join(path, "dataset_dict.json"), "rb") as file:
            splits = orjson.loads(file.read()).get("splits", [])
        raise ConfigError(f"{path!r} holds several splits; name one: {', '.join(f'{path}/{name}' for name in splits)}")
    try:
        with open(os.path.join(path, "state.json"), "rb") as file:
            state = orjson.loads(file.read())
        if state.get("_indices_data_files") or state.get("_indices_files"):
            raise ConfigError(f"{path!r} is a view with an index; save it again after .flatten_indices()")
        return [os.path.join(path, item["filename"]) for item in state["_data_files"]]
    except FileNotFoundError as error:
        message = f"{path!r} is a folder, but no saved `datasets` folder; name its files, for example {path}/*.jsonl"
        raise ConfigError(message) from error
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path!r}: its state.json is not that of a saved `datasets` folder: {error}") from error
