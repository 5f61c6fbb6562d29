"""Upload an exported folder to the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.errors import ConfigError


@dataclass(frozen=True, slots=True)
class HubTarget:
    """A model repository to upload to."""

    name: str
    """USER/NAME"""
    api: Any
    """Client of the hub"""


def check_push(name: str, api: Any = None) -> HubTarget:
    """Find out before the work whether an upload can succeed.

    Args:
        name: USER/NAME.
        api: client of the hub; the hub's own by default.

    Raises:
        ConfigError: if the name is none, the hub is switched off, or there is no token.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"--push {name!r}: {error}") from error
    if name.count("/") != 1:
        raise ConfigError(f"--push {name!r} is not a name on the hub; write USER/NAME")
    if api is not None:
        return HubTarget(name, api)
    if constants.HF_HUB_OFFLINE:
        raise ConfigError("--push: HF_HUB_OFFLINE is set; unset it to upload")
    if get_token() is None:
        raise ConfigError("--push: no token of the hub; run `hf auth login`, or set HF_TOKEN, with write access")
    return HubTarget(name, HfApi())


def push_folder(target: HubTarget, folder: Path) -> str:
    """Upload ``folder`` to the hub; a new repository is private. Returns what was done, in words.

    Raises:
        ConfigError: if the hub refuses or cannot be reached.
    """
    from huggingface_hub.errors import HfHubHTTPError

    api, name = target.api, target.name
    try:
        api.create_repo(name, repo_type="model", private=True, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            repo_type="model",
            folder_path=str(folder),
            commit_message="Upload a model exported by Triptych",
        )
        private = api.repo_info(name, repo_type="model").private
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ConfigError(f"--push: {folder} is written and proved, but not uploaded to {name}: {error}") from error
    return f"uploaded to https://huggingface.co/{name} ({'private' if private else 'PUBLIC: it existed before'})"
