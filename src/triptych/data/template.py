"""ChatML as the family's released chat templates render it, cut into segments that know whether they are targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from triptych.data.conversation import Conversation, Turn
from triptych.errors import ModelError

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
VISION_START, IMAGE_PAD, VISION_END = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"


@dataclass(frozen=True, slots=True)
class Encoded:
    """One conversation as ids, with exactly **one** ``<|image_pad|>`` per image; U is its number of tokens."""

    ids: NDArray[np.int32]
    """(U,)"""
    supervised: NDArray[np.bool_]
    """(U,) whether the id is a target."""
    slots: NDArray[np.int32]
    """(N,) index into ``ids`` of the pad of each image, in reading order."""


@dataclass(slots=True)
class _Segment:
    """A piece of a rendered conversation: fixed ids, or a text to tokenize."""

    ids: Sequence[int] = ()
    text: str | None = None
    target: bool = False
    picture: bool = False


class Template:
    """Renders and tokenizes conversations turn by turn.

    Each turn is ``<|im_start|>role\\n`` content ``<|im_end|>\\n``. An answer's content is tokenized apart from its
    header, so that training sees the ids that generation would produce after the prompt ``<|im_start|>assistant\\n``;
    a user's content is tokenized together with its header, since that is how a prompt is tokenized. Strings of the
    data never become special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, default_system: str | None) -> None:
        """
        Args:
            tokenizer: the model's tokenizer; it is set to read special-token text as plain text.
            default_system: system prompt that the family inserts where a conversation has none; None for none.

        Raises:
            ModelError: if the tokenizer lacks one of the markup tokens.
        """
        self.tokenizer = tokenizer
        self.tokenizer.encode_special_tokens = True
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.default_system = default_system
        self.turn_start, self.turn_end, self.vision_start, self.image_pad, self.vision_end = (
            self._special(token) for token in (TURN_START, TURN_END, VISION_START, IMAGE_PAD, VISION_END)
        )
        self._newline = self._encode("\n")
        self._answer_header = [self.turn_start, *self._encode("assistant\n")]
        self._picture = [self.vision_start, self.image_pad, self.vision_end]

    @classmethod
    def from_file(cls, path: Path, default_system: str | None) -> Template:
        """Load ``tokenizer.json``.

        Raises:
            ModelError: if the file cannot be read or lacks a markup token.
        """
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception for any defect of the file
            raise ModelError(f"cannot read the tokenizer {path}: {error}") from error
        return cls(tokenizer, default_system)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.tokenizer.to_str(), self.default_system)

    def encode(self, conversation: Conversation) -> Encoded:
        """Tokenize a whole conversation, answers included."""
        return self.encode_all([conversation])[0]

    def encode_all(self, conversations: Sequence[Conversation]) -> list[Encoded]:
        """Tokenize many conversations in one call of the tokenizer."""
        rendered = [self._render(self._with_system(conversation.turns)) for conversation in conversations]
        texts = [item.text for segments in rendered for item in segments if item.text is not None]
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ids = iter([encoding.ids for encoding in encodings])
        return [_assemble(segments, ids) for segments in rendered]

    def split_answer(self, encoded: Encoded) -> tuple[Encoded, NDArray[np.int32]]:
        """Cut a conversation at its last answer.

        Returns:
            The prompt that a model is to go on from (it ends in the answer's header), and the ids of the recorded
            answer without its end mark.
        """
        start = int(np.flatnonzero(encoded.ids == self.turn_start)[-1]) + len(self._answer_header)
        prompt = Encoded(encoded.ids[:start], encoded.supervised[:start], encoded.slots[encoded.slots < start])
        answer = encoded.ids[start:]
        return prompt, answer[: int(np.flatnonzero(answer == self.turn_end)[0])] if self.turn_end in answer else answer

    def filler(self) -> Encoded:
        """One picture and nothing to learn: a sample that keeps a row from being empty, or without a picture."""
        ids = np.array([self.vision_start, self.image_pad, self.vision_end], np.int32)
        return Encoded(ids, np.zeros(3, np.bool_), np.array([1], np.int32))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, special tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def readable(self, prompt: Encoded) -> str:
        """The dialogue of a prompt for people: a line per turn, ``[picture 1]`` for a picture, no default system."""
        lines: list[str] = []
        pictures = 0
        starts = [*np.flatnonzero(prompt.ids == self.turn_start).tolist(), len(prompt.ids)]
        for start, end in pairwise(starts):
            text = ""
            pieces = np.split(prompt.ids[start:end], np.flatnonzero(prompt.ids[start:end] == self.image_pad))
            for number, piece in enumerate(pieces):
                if number:
                    pictures += 1
                    text += f"[picture {pictures}]"
                text += self.decode(piece.tolist())
            role, _, content = text.partition("\n")
            if content.strip() and not (role == "system" and content.strip() == self.default_system):
                lines.append(f"{role}: {content.strip()}")
        return "\n".join(lines)

    def _with_system(self, turns: Sequence[Turn]) -> list[Turn]:
        if self.default_system is None or (turns and turns[0].role == "system"):
            return list(turns)
        return [Turn("system", (self.default_system,), False), *turns]

    def _render(self, turns: Sequence[Turn]) -> list[_Segment]:
        segments: list[_Segment] = []
        turn_end = [self.turn_end, *self._newline]
        for turn in turns:
            parts = list(turn.parts)
            if turn.role == "assistant":
                segments.append(_Segment(self._answer_header))
            else:
                segments.append(_Segment([self.turn_start]))
                header = f"{turn.role}\n"
                if parts and isinstance(parts[0], str):
                    header += parts[0]
                    parts = parts[1:]
                segments.append(_Segment(text=header))
            for part in parts:
                if isinstance(part, str):
                    segments.append(_Segment(text=part, target=turn.supervised))
                else:
                    # A picture inside an answer is context, never a target: no model of the family draws.
                    segments.append(_Segment(self._picture, picture=True))
            segments.append(_Segment(turn_end, target=turn.supervised))
        return segments

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _special(self, token: str) -> int:
        number = self.tokenizer.token_to_id(token)
        if number is None:
            raise ModelError(f"the tokenizer has no {token}: this is not a model of the Qwen-VL family")
        return int(number)


def _assemble(segments: Sequence[_Segment], texts: Iterator[list[int]]) -> Encoded:
    ids: list[int] = []
    targets: list[tuple[int, int]] = []
    slots: list[int] = []
    for segment in segments:
        start = len(ids)
        ids += segment.ids if segment.text is None else next(texts)
        if segment.picture:
            slots.append(start + 1)
        if segment.target:
            targets.append((start, len(ids)))
    supervised = np.zeros(len(ids), np.bool_)
    for start, end in targets:
        supervised[start:end] = True
    return Encoded(np.array(ids, np.int32), supervised, np.array(slots, np.int32))


def _restore(tokenizer: str, default_system: str | None) -> Template:
    return Template(Tokenizer.from_str(tokenizer), default_system)
