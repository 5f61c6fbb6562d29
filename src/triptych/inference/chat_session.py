"""A conversation with a model about several images, in the markup and with the pixels of training."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from transformers import PreTrainedModel

from triptych.corpus.examine import Encoder
from triptych.errors import ConfigError, Origin
from triptych.family.family import ModelFiles, read_model_files
from triptych.family.folders import ADAPTER_CONFIG
from triptych.images import identity, pixels
from triptych.images.geometry import MAX_ASPECT, is_extreme
from triptych.images.measure import ImageError
from triptych.inference.generate import Answer, Prompt, Sampling, stream
from triptych.model.device import choose_device
from triptych.model.loading import PixelNormalizer, choose_precision
from triptych.model.trained import load_trained, quiet_loading
from triptych.run import run_file
from triptych.run.prepare import make_encoder
from triptych.run.settings import ModelSettings, RunSettings
from triptych.sources.records import ImageRef
from triptych.text.conversation import MARK, Conversation, Turn
from triptych.text.layout import Budget, TooLongError, fit, lay_out

RUN_FILE = "run.yaml"
NEW_TOKENS = 512
ORIGIN = Origin("the conversation", 0)


class ChatError(Exception):
    """A message or an image that cannot be taken; the conversation goes on without it."""


@dataclass(slots=True)
class Session:
    """A conversation with a model: what was said, and the images waiting for the next message."""

    model: PreTrainedModel
    encoder: Encoder
    normalizer: PixelNormalizer
    max_new_tokens: int
    temperature: float = 0.0
    thinking: bool | None = None
    """Whether answers begin with a thinking block, where the model's template leaves a choice."""
    note: str | None = None
    """What to know about the model, a sentence"""
    system: tuple[Turn, ...] = ()
    """The system prompt of the run, where its run file gives one"""
    turns: tuple[Turn, ...] = ()
    images: list[tuple[ImageRef, Image.Image]] = field(default_factory=list)
    """Upright and in RGB; the first ``shown`` of them belong to turns, the others wait."""
    shown: int = 0

    def add_image(self, image: str | Image.Image) -> str:
        """Read an image for the next message, from a file or as it is in memory; says what it will cost.

        Raises:
            ChatError: if it cannot be read.
        """
        path = image if isinstance(image, str) else "image in memory"
        ref = ImageRef(str(Path(path).expanduser()))
        try:
            if isinstance(image, str):
                picture = pixels.load_rgb(identity.locate(ref, os.getcwd(), identity.Rules()))
            else:
                picture = pixels.to_rgb(ImageOps.exif_transpose(image))
        except ImageError as error:
            raise ChatError(error.message) from error
        if is_extreme(picture.height, picture.width):
            raise ChatError(f"{path}: aspect ratio of {picture.height} x {picture.width} is over {MAX_ASPECT}")
        self.images.append((ref, picture))
        height, width = self.encoder.geometry.resized(picture.height, picture.width)
        tokens = self.encoder.geometry.tokens(height, width)
        return (
            f"image {len(self.images)}: {path}, {picture.height} x {picture.width} px, resized to "
            f"{height} x {width}: {tokens:,} tokens"
        )

    def ask(self, text: str, write: Callable[[str], None]) -> Answer:
        """Send a message and write the answer in pieces; both become part of the conversation.

        Raises:
            ChatError: if the message cannot be taken; then it is as if it had not been said.
        """
        turns = (*self.turns, Turn("user", self.parts(text), False))
        prompt, opening = self.prompt((*self.system, *turns))
        template = self.encoder.template
        sampling = Sampling(self.max_new_tokens, self.temperature)
        answer = stream(self.model, prompt, template, self.normalizer, sampling, write)
        if answer.ids or answer.finished:  # else it was interrupted at once
            self.turns = (*turns, Turn("assistant", (opening + template.decode(answer.ids),), True))
            self.shown = len(self.images)
        return answer

    def forget_waiting(self) -> None:
        """Take back the images of a message that could not be sent."""
        del self.images[self.shown :]

    def reset(self) -> None:
        """Forget what was said, and all images."""
        self.turns, self.images, self.shown = (), [], 0

    def parts(self, text: str) -> tuple[str | int, ...]:
        """A message with the waiting images at its marks; without marks they come first, as in most data.

        Raises:
            ChatError: if marks and waiting images do not match.
        """
        waiting = range(self.shown, len(self.images))
        pieces = text.split(MARK)
        marks = len(pieces) - 1
        if not marks:
            return (*waiting, text)
        if marks != len(waiting):
            raise ChatError(f"{marks} {MARK} in the message, but {len(waiting)} images wait for it; see /help")
        parts: list[str | int] = []
        for number, piece in zip((None, *waiting), pieces, strict=True):
            parts += ([] if number is None else [number]) + ([piece] if piece else [])
        return tuple(parts)

    def prompt(self, turns: tuple[Turn, ...]) -> tuple[Prompt, str]:
        """What was said so far, encoded turn by turn as in training, and the text it holds of the answer already.

        Raises:
            ChatError: if no permitted size of the images keeps it within the run's budget of a sample.
        """
        template, geometry, budget = self.encoder.template, self.encoder.geometry, self.encoder.budget
        refs = tuple(ref for ref, _ in self.images)
        encoded = template.encode_prompt(Conversation(turns, refs, ORIGIN), thinking=self.thinking)
        try:
            fitted = fit(encoded, [(picture.height, picture.width) for _, picture in self.images], geometry, budget)
        except TooLongError as error:
            raise ChatError(f"{error}; /reset starts again") from error
        layout = lay_out(fitted.encoded, fitted.resized, geometry, ORIGIN)
        patches = [
            pixels.patchify(pixels.resize(picture, size, geometry), geometry)
            for (_, picture), size in zip(self.images, fitted.resized, strict=True)
        ]
        header = np.flatnonzero(encoded.ids == template.turn_start)[-1]
        opening = template.decode(encoded.ids[header:].tolist()).partition("\n")[2]
        return Prompt(0, layout, pixels.join(patches, geometry)), opening


def open_session(
    folder: str, *, max_new_tokens: int | None = None, temperature: float = 0.0, thinking: bool | None = None
) -> Session:
    """Load an exported folder, a checkpoint (adapters go onto the base that its run file names), or any model.

    Raises:
        ConfigError: if its run file cannot be used.
        ModelError: if the model cannot be loaded.
    """
    path = Path(folder)
    run = run_file.load(path / RUN_FILE) if (path / RUN_FILE).exists() else None
    adapted = (path / ADAPTER_CONFIG).exists()
    if adapted and run is None:
        raise ConfigError(f"{folder} holds adapters, but no {RUN_FILE} that names their base")
    files = read_model_files(run.model.path if adapted and run is not None else folder)
    settings = ModelSettings(path=folder) if run is None else run.model.model_copy(update={"attention": "auto"})
    device = choose_device()
    with quiet_loading():
        model = load_trained(settings, path, choose_precision(settings))
    model.to(device)  # type: ignore[arg-type]  # decorated without its types in transformers
    model.train(False)
    model.config.use_cache = True
    return Session(
        model=model,
        encoder=_encoder(files, run),
        normalizer=PixelNormalizer(files).to(device),
        max_new_tokens=max_new_tokens or (NEW_TOKENS if run is None else run.eval.max_new_tokens),
        temperature=temperature,
        thinking=thinking,
        note=files.replaced,
        system=() if run is None or run.data.system is None else (Turn("system", (run.data.system,), 0.0),),
    )


def _encoder(files: ModelFiles, run: RunSettings | None) -> Encoder:
    """As in training, where a run file says how; but a conversation that grows too long is never cut."""
    if run is None:
        return Encoder(files.template(), files.geometry, Budget())
    encoder = make_encoder(files, run)
    budget = encoder.budget
    shrinks = budget.too_long in ("shrink", "cut_text")
    return replace(encoder, budget=Budget(budget.max_tokens if shrinks else None, budget.image_tokens, "shrink"))
