"""ChatML as the family's released chat templates render it, cut into segments that know whether they are targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from triptych.errors import ModelError
from triptych.text.chat_template import (
    THINK_END,
    THINK_START,
    TOOL_END,
    TOOL_START,
    ChatStyle,
    orders,
    split_thinking,
    trimmed,
)
from triptych.text.content_tokens import control_strings, read_tokenizer
from triptych.text.conversation import Conversation, Turn
from triptych.text.word_cache import WordTokenizer

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
VISION_START, IMAGE_PAD, VISION_END = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"


@dataclass(frozen=True, slots=True)
class Encoded:
    """One conversation as ids, with exactly **one** ``<|image_pad|>`` per image; U is its number of tokens."""

    ids: NDArray[np.int32]
    """(U,)"""
    weights: NDArray[np.float32]
    """(U,) how much the id counts in the loss; 0 where it is no target."""
    slots: NDArray[np.int32]
    """(N,) index into ``ids`` of the pad of each image, in reading order."""

    @property
    def supervised(self) -> NDArray[np.bool_]:
        """(U,) whether the id is a target."""
        return self.weights > 0


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """C conversations as ids, end to end; each kind of value with its (C + 1,) bounds."""

    ids: NDArray[np.int32]
    id_bounds: NDArray[np.int32]
    spans: NDArray[np.int32]
    """[start, end) pairs of targets, flat, counted within their conversation"""
    span_bounds: NDArray[np.int32]
    weights: NDArray[np.float32]
    """How much the targets of each pair count in the loss"""
    slots: NDArray[np.int32]
    """Index of the pad of each image within its conversation"""
    slot_bounds: NDArray[np.int32]
    thinking_dropped: NDArray[np.int32]
    """(C,) answers whose thinking the chat template leaves out, since a later question follows"""
    control_texts: NDArray[np.int32]
    """(C,) strings of control tokens that the data holds; they were taken as text"""

    def __len__(self) -> int:
        return len(self.id_bounds) - 1

    def __getitem__(self, number: int) -> Encoded:
        def piece(values: NDArray[np.int32], bounds: NDArray[np.int32]) -> NDArray[np.int32]:
            return values[bounds[number] : bounds[number + 1]]

        ids = piece(self.ids, self.id_bounds)
        spans = piece(self.spans, self.span_bounds)
        first, last = self.span_bounds[number] // 2, self.span_bounds[number + 1] // 2
        weights = target_weights(spans, self.weights[first:last], len(ids))
        return Encoded(ids, weights, piece(self.slots, self.slot_bounds))


def target_weights(spans: NDArray[np.int32], weights: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """(length,) weight of each id in the loss, of [start, end) pairs and the weight of each; 0 outside of them."""
    found = np.zeros(length, np.float32)
    for start, end, weight in zip(spans[::2].tolist(), spans[1::2].tolist(), weights.tolist(), strict=True):
        found[start:end] = weight
    return found


_Segment = tuple[Sequence[int] | None, int, float, bool]
"""A piece of a rendered conversation: its ids or None, else the number of its text; its weight; whether image."""


class Template:
    """Renders and tokenizes conversations turn by turn.

    Each turn is ``<|im_start|>role\\n`` content ``<|im_end|>\\n``. An answer's content is tokenized apart from its
    header, so that training sees the ids that generation would produce after the prompt ``<|im_start|>assistant\\n``;
    a user's content is tokenized together with its header, since that is how a prompt is tokenized. Strings of the
    data become tokens of content (boxes, references, what a user has added), never control tokens.

    Where the style has thinking blocks, what a prompt would hold of them is no target: the opening, and the whole of
    an empty block where a prompt may close it at once.
    """

    def __init__(self, tokenizer: Tokenizer, style: ChatStyle) -> None:
        """
        Args:
            tokenizer: the model's tokenizer, as ``read_tokenizer`` gives it; it is set to read the text of special
                tokens as plain text.
            style: what the model's chat template does beyond plain ChatML.

        Raises:
            ModelError: if the tokenizer lacks one of the markup tokens.
        """
        self.tokenizer = tokenizer
        self.tokenizer.encode_special_tokens = True
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self._words = WordTokenizer(self.tokenizer)
        self._count_control = control_strings(self.tokenizer)
        self.style = style
        self.turn_start, self.turn_end, self.vision_start, self.image_pad, self.vision_end = (
            self._special(token) for token in (TURN_START, TURN_END, VISION_START, IMAGE_PAD, VISION_END)
        )
        self._newline = self._encode("\n")
        self._answer_header = [self.turn_start, *self._encode("assistant\n")]
        self._turn_header = [self.turn_start]
        self._turn_footer = [self.turn_end, *self._newline]
        self._image = [self.vision_start, self.image_pad, self.vision_end]
        self._think_open: list[int] = []
        self._think_skipped: list[int] = []
        if style.thinking != "none":
            start, end, gap = self._special(THINK_START), self._special(THINK_END), self._encode("\n\n")
            self._think_open = [start, *self._newline]
            self._think_close = [end, *gap]
            self._think_skipped = [start, *gap, end, *gap]

    @classmethod
    def from_file(cls, path: Path, style: ChatStyle) -> Template:
        """Load ``tokenizer.json``.

        Raises:
            ModelError: if the file cannot be read or lacks a markup token.
        """
        return cls(read_tokenizer(path), style)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.tokenizer.to_str(), self.style)

    def encode(self, conversation: Conversation) -> Encoded:
        """Tokenize a whole conversation, answers included."""
        return self.encode_all([conversation])[0]

    def encode_all(self, conversations: Sequence[Conversation], *, effort: bool = True) -> EncodedBatch:
        """Tokenize many conversations in one call of the tokenizer; a text that comes again is tokenized once.

        Args:
            conversations: answers included.
            effort: whether they hold the style's instruction about effort, if it has one.
        """
        texts: dict[str, int] = {}
        instruction = self.style.effort if effort else None
        rendered = [self._render(conversation, texts, instruction) for conversation in conversations]
        thinking_dropped = [self._thinking_dropped(conversation.turns) for conversation in conversations]
        control = {number: count for text, number in texts.items() if (count := self._count_control(text))}
        typed = [
            sum(control.get(number, 0) for fixed, number, *_ in segments if fixed is None) if control else 0
            for segments in rendered
        ]
        return _assemble(rendered, self._words.encode_all(list(texts)), thinking_dropped, typed)

    def refusal(self, turns: Sequence[Turn]) -> str | None:
        """Why the model's chat template does not render these turns one after the other; None where it does."""
        if not self.style.refuses:
            return None
        found = next((order for order in orders([turn.role for turn in turns]) if order in self.style.refuses), None)
        return None if found is None else f"the chat template of this model does not render {found}; rewrite the turns"

    def encode_prompt(self, conversation: Conversation, *, thinking: bool | None = None) -> Encoded:
        """Tokenize a conversation that ends with a question, and the header of the answer to come.

        Args:
            conversation: what was said so far.
            thinking: whether the answer is to begin with a thinking block, where the style leaves a choice; None for
                what its template does by itself.
        """
        encoded = self.encode_all([conversation], effort=thinking is not False)[0]
        opens = self.style.thinks_by_default if thinking is None else thinking
        header = list(self._answer_header)
        if self.style.thinking != "none":
            header += self._think_open if opens or not self.style.skips_thinking else self._think_skipped
        ids = np.concatenate((encoded.ids, np.array(header, np.int32)))
        return Encoded(ids, np.zeros(len(ids), np.float32), encoded.slots)

    def split_answer(self, encoded: Encoded) -> tuple[Encoded, NDArray[np.int32]]:
        """Cut a conversation at its last answer.

        Returns:
            The prompt that a model is to go on from (it ends in the answer's header), and the ids of the recorded
            answer without its end mark.
        """
        start = int(np.flatnonzero(encoded.ids == self.turn_start)[-1]) + len(self._answer_header)
        for opening in (self._think_skipped if self.style.skips_thinking else [], self._think_open):
            if opening and encoded.ids[start : start + len(opening)].tolist() == opening:
                start += len(opening)
                break
        prompt = Encoded(encoded.ids[:start], encoded.weights[:start], encoded.slots[encoded.slots < start])
        answer = encoded.ids[start:]
        return prompt, answer[: int(np.flatnonzero(answer == self.turn_end)[0])] if self.turn_end in answer else answer

    def thinks(self, encoded: Encoded) -> bool:
        """Whether the last answer of a conversation begins with a thought."""
        prompt, _ = self.split_answer(encoded)
        opening = self._think_open
        return bool(opening) and prompt.ids[-len(opening) :].tolist() == opening

    def filler(self) -> Encoded:
        """One image and nothing to learn: a sample that keeps a row from being empty, or without an image."""
        ids = np.array([self.vision_start, self.image_pad, self.vision_end], np.int32)
        return Encoded(ids, np.zeros(3, np.float32), np.array([1], np.int32))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, special tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def readable(self, prompt: Encoded) -> str:
        """The dialogue of a prompt for people: a line per turn, ``[image 1]`` for an image, no default system."""
        lines: list[str] = []
        images = 0
        starts = [*np.flatnonzero(prompt.ids == self.turn_start).tolist(), len(prompt.ids)]
        for start, end in pairwise(starts):
            text = ""
            pieces = np.split(prompt.ids[start:end], np.flatnonzero(prompt.ids[start:end] == self.image_pad))
            for number, piece in enumerate(pieces):
                if number:
                    images += 1
                    text += f"[image {images}]"
                text += self.decode(piece.tolist())
            role, _, content = text.partition("\n")
            if self.style.thinking != "none":  # what a prompt holds of a thinking block
                content = content.replace(f"{THINK_START}\n\n{THINK_END}", "").removesuffix(f"{THINK_START}\n")
            if role == "system" and self.style.effort is not None:
                content = content.removeprefix(self.style.effort)
            if content.strip() and not (role == "system" and content.strip() == self.style.default_system):
                lines.append(f"{role}: {content.strip()}")
        return "\n".join(lines)

    def final_text(self, ids: Sequence[int]) -> str:
        """Text of an answer's ids after its thinking, special tokens left out."""
        return self.decode(ids).rpartition(THINK_END)[2] if self.style.thinking != "none" else self.decode(ids)

    def text(self, encoded: Encoded) -> str:
        """All of a conversation as text, special tokens included."""
        return str(self.tokenizer.decode(encoded.ids.tolist(), skip_special_tokens=False))

    def _render(self, conversation: Conversation, texts: dict[str, int], effort: str | None) -> list[_Segment]:
        """Pieces of a conversation; its texts are added to ``texts``, numbered in order."""
        segments: list[_Segment] = []
        turns = conversation.turns

        def text(content: str, weight: float) -> None:
            if content:
                segments.append((None, texts.setdefault(content, len(texts)), weight, False))

        last_question = self._last_question(turns)
        inserted = self.style.default_system or effort
        if inserted is not None and not (turns and turns[0].role == "system"):
            weight = conversation.weight if conversation.whole else 0.0
            segments.append((self._turn_header, 0, weight, False))
            text(f"system\n{inserted}", weight)
            segments.append((self._turn_footer, 0, weight, False))
        for number, turn in enumerate(turns):
            parts: Sequence[str | int] = trimmed(turn.parts) if self.style.trims else turn.parts
            weight = turn.weight * conversation.weight
            given = weight if conversation.whole else 0.0  # of what a prompt holds
            if turn.role == "assistant":
                segments.append((self._answer_header, 0, given, False))
                if self.style.thinking != "none":
                    thought, parts = split_thinking(parts, trims=self.style.trims)
                    if self.style.thinking == "all" or number > last_question:
                        self._render_thinking(thought, (weight, given), segments, text)
            else:
                header = f"{turn.role}\n"
                if turn.role == "system" and number == 0 and self.style.effort is not None:
                    if not parts and effort is None:
                        continue  # a template that asks for effort leaves an empty system turn out
                    header += (effort or "") + ("\n\n" if parts and effort else "")
                segments.append((self._turn_header, 0, given, False))
                if parts and isinstance(parts[0], str):
                    header += parts[0]
                    parts = parts[1:]
                text(header, given)
            for part in parts:
                if isinstance(part, str):
                    text(part, weight)
                else:
                    # An image is context, also inside an answer, and never a target: no model of the family draws.
                    segments.append((self._image, 0, 0.0, True))
            segments.append((self._turn_footer, 0, weight, False))
        return segments

    def _last_question(self, turns: Sequence[Turn]) -> int:
        asked = (number for number, turn in enumerate(turns) if turn.role == "user" and not self._is_tool(turn))
        return max(asked, default=-1)

    def _is_tool(self, turn: Turn) -> bool:
        parts = trimmed(turn.parts)
        if not self.style.answers_tools or not parts:
            return False
        return str(parts[0]).startswith(TOOL_START) and str(parts[-1]).endswith(TOOL_END)

    def _thinking_dropped(self, turns: Sequence[Turn]) -> int:
        if self.style.thinking != "last":
            return 0
        earlier = (turn for turn in turns[: self._last_question(turns) + 1] if turn.role == "assistant")
        return sum(bool(split_thinking(turn.parts, trims=self.style.trims)[0]) for turn in earlier)

    def _render_thinking(
        self,
        thought: str,
        weights: tuple[float, float],
        segments: list[_Segment],
        text: Callable[[str, float], None],
    ) -> None:
        """The thinking block of an answer; ``weights``: of the answer, and of what a prompt holds."""
        weight, given = weights
        if not thought and self.style.skips_thinking:
            segments.append((self._think_skipped, 0, given, False))
            return
        segments.append((self._think_open, 0, given, False))
        text(f"{thought}\n", weight)
        segments.append((self._think_close, 0, weight, False))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _special(self, token: str) -> int:
        number = self.tokenizer.token_to_id(token)
        if number is None:
            raise ModelError(f"the tokenizer has no {token}: this is not a model of the Qwen-VL family")
        return int(number)


def _assemble(
    rendered: Sequence[Sequence[_Segment]],
    texts: Sequence[Sequence[int]],
    thinking_dropped: Sequence[int],
    typed: Sequence[int],
) -> EncodedBatch:
    ids: list[int] = []
    spans: list[int] = []
    weights: list[float] = []
    slots: list[int] = []
    bounds = [(0, 0, 0)]
    for segments in rendered:
        begin = len(ids)
        open_span, current = 0, 0.0
        for fixed, number, weight, image in segments:
            start = len(ids) - begin
            if image:
                slots.append(start + 1)
            if weight != current:  # neighbouring targets of one weight are one span
                if current:
                    spans += (open_span, start)
                    weights.append(current)
                open_span, current = max(start, 1), weight  # nothing comes before a sample's first id to predict it
            ids += texts[number] if fixed is None else fixed
        if current:
            spans += (open_span, len(ids) - begin)
            weights.append(current)
        bounds.append((len(ids), len(spans), len(slots)))
    id_bounds, span_bounds, slot_bounds = np.array(bounds, np.int32).T
    return EncodedBatch(
        np.array(ids, np.int32),
        id_bounds,
        np.array(spans, np.int32),
        span_bounds,
        np.array(weights, np.float32),
        np.array(slots, np.int32),
        slot_bounds,
        np.array(thinking_dropped, np.int32),
        np.array(typed, np.int32),
    )


def _restore(tokenizer: str, style: ChatStyle) -> Template:
    return Template(Tokenizer.from_str(tokenizer), style)
