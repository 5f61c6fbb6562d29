"""ChatML as the family's released chat templates render it, cut into segments that know whether they are targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from triptych.errors import Code, ModelError
from triptych.text.box_filling import BoxMarks, counted, fill_objects, writes_digits_alone
from triptych.text.conversation import Conversation, Turn
from triptych.text.tokens.chat_template import (
    THINK_END,
    THINK_START,
    TOOL_END,
    TOOL_START,
    ChatStyle,
    ChatTemplate,
    orders,
    split_thinking,
    trimmed,
)
from triptych.text.tokens.content_tokens import control_strings, read_tokenizer
from triptych.text.tokens.encoded import Encoded as Encoded
from triptych.text.tokens.encoded import EncodedBatch as EncodedBatch
from triptych.text.tokens.encoded import Segment, assemble
from triptych.text.tokens.word_cache import WordTokenizer
from triptych.text.tool_rendering import Block, cut_thinking, render_blocks

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
VISION_START, IMAGE_PAD, VISION_END = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"

Write = Callable[[str, float], None]
"""Adds a text and its weight to the segments of a conversation."""


class Template:
    """Renders and tokenizes conversations turn by turn.

    Each turn is ``<|im_start|>role\\n`` content ``<|im_end|>\\n``. An answer's content is tokenized apart from its
    header, so that training sees the ids that generation would produce after the prompt ``<|im_start|>assistant\\n``;
    a user's content is tokenized together with its header, since that is how a prompt is tokenized. Strings of the
    data become tokens of content (boxes, references, what a user has added), never control tokens.

    Where the style has thinking blocks, what a prompt would hold of them is no target: the opening, and the whole of
    an empty block where a prompt may close it at once.
    """

    def __init__(self, tokenizer: Tokenizer, style: ChatStyle, released: ChatTemplate | None = None) -> None:
        """
        Args:
            tokenizer: the model's tokenizer, as ``read_tokenizer`` gives it; it is set to read the text of special
                tokens as plain text.
            style: what the model's chat template does beyond plain ChatML.
            released: that template, which renders conversations that use tools; None where there are none.

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
        self.released = released
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
    def from_file(cls, path: Path, style: ChatStyle, released: ChatTemplate | None = None) -> Template:
        """Load ``tokenizer.json``.

        Raises:
            ModelError: if the file cannot be read or lacks a markup token.
        """
        return cls(read_tokenizer(path), style, released)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.tokenizer.to_str(), self.style, self.released)

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
        boxes = [BoxMarks(self.tokenizer) for _ in conversations]
        rendered = [
            self._render(item, texts, instruction, marks) for item, marks in zip(conversations, boxes, strict=True)
        ]
        thinking_dropped = [self._thinking_dropped(conversation.turns) for conversation in conversations]
        control = {number: count for text, number in texts.items() if (count := self._count_control(text))}
        typed = [
            sum(control.get(number, 0) for fixed, number, *_ in segments if fixed is None) if control else 0
            for segments in rendered
        ]
        ids = self._words.encode_all(list(texts))
        found = assemble(rendered, ids, thinking_dropped, typed)
        if not any(conversation.objects for conversation in conversations):
            return found
        rows = [marks.rows(segments, ids) for marks, segments in zip(boxes, rendered, strict=True)]
        return replace(found, boxes=np.concatenate(rows), box_bounds=counted(rows))

    def refusal(self, conversation: Conversation) -> tuple[Code, str] | None:
        """Why a conversation cannot be written for this model: its chat template does not render the turns one after
        the other, or their tools or thoughts, or numbers cannot be filled in; None where it can."""
        turns = conversation.turns
        if conversation.objects and not writes_digits_alone(self.tokenizer):
            advice = "so that boxes cannot be filled in; write them into the text"
            return "role-order", f"the tokenizer of this model joins digits, {advice}"
        thoughtful = next((number for number, turn in enumerate(turns, 1) if turn.thought), None)
        if thoughtful is not None and self.style.thinking == "none":
            advice = "write it into the content, or `ignore: [reasoning_content, reasoning]` in the source"
            return "bad-shape", f"the chat template of this model renders no `reasoning_content`; {advice}"
        if conversation.uses_tools:
            return self._tool_refusal(conversation)
        if not self.style.refuses:
            return None
        found = next((order for order in orders([turn.role for turn in turns]) if order in self.style.refuses), None)
        if found is None:
            return None
        return "role-order", f"the chat template of this model does not render {found}; rewrite the turns"

    def _tool_refusal(self, conversation: Conversation) -> tuple[Code, str] | None:
        """Why the model's chat template does not render a conversation that uses tools."""
        if not self.style.tools or self.released is None:
            return "bad-shape", (
                "the chat template of this model renders no tools (`tools`, calls and what tools give back); put a "
                "template that does into its folder, as chat_template.jinja, or write them into the text of the turns"
            )
        try:
            self._blocks(conversation, conversation.turns, effort=True)
        except ModelError as error:
            return "bad-shape", f"the chat template of this model does not render the tools of this record: {error}"
        return None

    def _blocks(self, conversation: Conversation, turns: Sequence[Turn], *, effort: bool) -> list[Block]:
        if self.released is None:
            raise ModelError("there is no chat template to render tools with")
        return render_blocks(self.released, self.style, conversation, turns, effort=effort)

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

    def _render(
        self, conversation: Conversation, texts: dict[str, int], effort: str | None, marks: BoxMarks
    ) -> list[Segment]:
        """Pieces of a conversation; its texts are added to ``texts``, numbered in order, its boxes to ``marks``."""
        segments: list[Segment] = []
        turns = conversation.turns
        if conversation.objects:
            turns = fill_objects(conversation, self.style.boxes, marks)

        def text(content: str, weight: float) -> None:
            if content and conversation.objects:
                content = marks.take(content, len(segments))
            if content:
                segments.append((None, texts.setdefault(content, len(texts)), weight, False))

        if conversation.uses_tools:
            blocks = self._blocks(conversation, turns, effort=effort is not None or self.style.effort is None)
            self._render_blocks(blocks, conversation, segments, text)
            return segments
        last_question = self._last_question(turns) if self.style.thinking == "last" else -1
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
                    thought, parts = self._thought(turn, parts)
                    if self.style.thinking == "all" or number > last_question:
                        self._render_thinking(thought, (weight, given), segments, text)
            else:
                header = f"{turn.role}\n"
                if turn.role == "system" and number == 0 and self.style.effort is not None:
                    if not parts and effort is None:
                        continue  # a template that asks for effort leaves an empty system turn out
                    header += (effort or "") + ("\n\n" if parts and effort else "")
                parts = self._render_header(header, parts, given, segments, text)
            self._render_rest(parts, weight, conversation, segments, text)
        return segments

    def _thought(self, turn: Turn, parts: Sequence[str | int]) -> tuple[str, Sequence[str | int]]:
        """What is thought before an answer, and what is said after."""
        if turn.thought:
            return (turn.thought.strip() if self.style.trims else turn.thought.strip("\n")), parts
        return split_thinking(parts, trims=self.style.trims)

    def _render_header(
        self, header: str, parts: Sequence[str | int], weight: float, segments: list[Segment], text: Write
    ) -> Sequence[str | int]:
        """The header of a turn that is no answer, with the text that follows it; returns the other parts."""
        segments.append((self._turn_header, 0, weight, False))
        if parts and isinstance(parts[0], str):
            header += parts[0]
            parts = parts[1:]
        text(header, weight)
        return parts

    def _render_rest(
        self,
        parts: Sequence[str | int],
        weight: float,
        conversation: Conversation,
        segments: list[Segment],
        text: Write,
    ) -> None:
        """What a turn holds, and its end."""
        for part in parts:
            if isinstance(part, str):
                text(part, weight)
            else:
                # An image is context, also inside an answer: no model of the family draws. It is a target only
                # where a source asks for everything, as another tool has it.
                segments.append((self._image, 0, weight if conversation.with_images else 0.0, True))
        segments.append((self._turn_footer, 0, weight, False))

    def _render_blocks(
        self, blocks: Sequence[Block], conversation: Conversation, segments: list[Segment], text: Write
    ) -> None:
        """What the model's chat template has rendered."""
        for block in blocks:
            parts: Sequence[str | int] = block.parts
            weight = block.weight * conversation.weight
            given = weight if conversation.whole else 0.0
            if not block.answer:
                parts = self._render_header(f"{block.role}\n", parts, given, segments, text)
                weight = given
            else:
                segments.append((self._answer_header, 0, given, False))
                thought, parts = cut_thinking(parts) if self.style.thinking != "none" else (None, parts)
                if thought is not None:
                    self._render_thinking(thought, (weight, given), segments, text)
            self._render_rest(parts, weight, conversation, segments, text)

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
        return sum(bool(self._thought(turn, turn.parts)[0]) for turn in earlier)

    def _render_thinking(
        self,
        thought: str,
        weights: tuple[float, float],
        segments: list[Segment],
        text: Write,
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


def _restore(tokenizer: str, style: ChatStyle, released: ChatTemplate | None) -> Template:
    return Template(Tokenizer.from_str(tokenizer), style, released)
