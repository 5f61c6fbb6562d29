"""Talk with a model from Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from triptych.errors import ConfigError

if TYPE_CHECKING:
    from triptych.inference.chat_session import Session


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said."""

    text: str
    finished: bool
    """False if it was cut off at ``max_new_tokens``"""


class Chat:
    """A conversation with a model; what was said is remembered."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def ask(self, text: str, images: Sequence[str | Path | Image.Image] = ()) -> Answer:
        """Send a message; its ``<image>`` marks stand for ``images`` in order, without marks they come first.

        Raises:
            ConfigError: if an image cannot be read, or marks and images differ; it is as if nothing had been said.
        """
        from triptych.inference.chat_session import ChatError

        pieces: list[str] = []
        try:
            for image in images:
                self._session.add_image(image if isinstance(image, Image.Image) else str(image))
            answer = self._session.ask(text, pieces.append)
        except ChatError as error:
            self._session.forget_waiting()
            raise ConfigError(str(error)) from error
        return Answer("".join(pieces), answer.finished)

    def reset(self) -> None:
        """Forget what was said, and all images."""
        self._session.reset()


def load_chat(folder: str | Path, *, max_new_tokens: int | None = None) -> Chat:
    """A model to talk with: an exported folder, a checkpoint, or any model; imports torch.

    Args:
        folder: model folder or hub name.
        max_new_tokens: longest answer; None means the run's own limit, else 512.

    Raises:
        ConfigError: if adapters come without the run file that names their base.
        ModelError: if the model cannot be loaded.
    """
    from triptych.inference.chat_session import open_session

    return Chat(open_session(str(folder), max_new_tokens=max_new_tokens))
