"""Conversations that use tools, rendered by the model's own chat template and cut into its turns again.

Families write tools in forms of their own (JSON, tags), merge what several tools give back into one turn, and put the
definitions into the system turn. So the template itself renders such a conversation, and what comes out is cut:

    messages, tools -> "<|im_start|>user\\n<tool_response>\\n3\\n</tool_response><|im_end|>\\n" -> Block("user", ...)

Strings of the data cannot forge a turn: what looks like markup in them is escaped before, and restored after.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from triptych.errors import ModelError
from triptych.text.conversation import Conversation
from triptych.text.shapes.calls import ToolCall
from triptych.text.tokens.chat_template import THINK_END, THINK_START, ChatStyle, ChatTemplate, split_thinking
from triptych.text.turns import Role, Turn

ESCAPE = "\ufdd0"
"""A code point that no text holds (Unicode keeps it free); it begins every escape."""
_ESCAPES = {f"{ESCAPE}0": ESCAPE, f"{ESCAPE}1": "<|"}
_ESCAPED = re.compile(f"{ESCAPE}[01]")
_SHOWN = f"{ESCAPE}2"
"""An image in an answer: released templates leave it out there, and Triptych shows it."""
_IMAGE = re.compile(f"<\\|vision_start\\|><\\|image_pad\\|><\\|vision_end\\|>|{_SHOWN}")
_BLOCK = re.compile(r"<\|im_start\|>([^\n<]*)\n(.*?)<\|im_end\|>\n", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """One turn as the template writes it."""

    role: str
    """In its header"""
    parts: tuple[str | int, ...]
    """As of ``Turn``"""
    weight: float
    """Of the turns that it holds"""
    answer: bool


def render_blocks(
    template: ChatTemplate, style: ChatStyle, conversation: Conversation, turns: Sequence[Turn], *, effort: bool
) -> list[Block]:
    """The blocks of a conversation.

    Args:
        template: the model's.
        style: what it does.
        conversation: whose tools are offered.
        turns: its turns, with names and boxes filled in.
        effort: whether an instruction about effort is written, if the template has one.

    Raises:
        ModelError: if the template refuses the conversation, or what it renders does not hold every turn and image.
    """
    messages = [_message(turn, template, style) for turn in turns]
    tools = [json.loads(_escaped(tool)) for tool in conversation.tools]
    text = template.render_messages(messages, tools, **({} if effort else {"enable_thinking": False}))
    return _blocks(text, turns, ownerless=float(conversation.whole))


def cut_thinking(parts: Sequence[str | int]) -> tuple[str | None, Sequence[str | int]]:
    """The thought that an answer begins with, None where it has no thinking block, and what follows."""
    first = parts[0] if parts else ""
    if not isinstance(first, str) or not first.startswith(f"{THINK_START}\n"):
        return None, parts
    thought, mark, said = first.removeprefix(f"{THINK_START}\n").partition(f"\n{THINK_END}\n\n")
    if not mark:
        return None, parts
    return thought, [*([said] if said else []), *parts[1:]]


def _message(turn: Turn, template: ChatTemplate, style: ChatStyle) -> dict[str, Any]:
    parts: Sequence[str | int] = turn.parts
    message: dict[str, Any] = {"role": turn.role}
    thought = turn.thought
    if turn.role == "assistant" and not thought and style.thinking != "none" and template.reads_reasoning:
        thought, parts = split_thinking(parts, trims=style.trims)
    message["content"] = _content(turn.role, parts, as_parts=template.as_parts)
    if thought:
        message["reasoning_content"] = _escaped(thought)
    if turn.calls:
        message["tool_calls"] = [{"type": "function", "function": _function(call)} for call in turn.calls]
    return message


def _function(call: ToolCall) -> dict[str, Any]:
    return {"name": _escaped(call.name), "arguments": json.loads(_escaped(call.arguments))}


def _content(role: Role, parts: Sequence[str | int], *, as_parts: bool) -> str | list[dict[str, str]]:
    """Text, or text and images; images of an answer as marks in its text."""
    if role == "assistant":
        parts = ["".join(_escaped(part) if isinstance(part, str) else _SHOWN for part in parts)]
    else:
        parts = [_escaped(part) if isinstance(part, str) else part for part in parts]
    if not as_parts and all(isinstance(part, str) for part in parts):
        return "".join(map(str, parts))
    kept = [part for part in parts if part != ""]
    return [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in kept]


def _blocks(text: str, turns: Sequence[Turn], *, ownerless: float) -> list[Block]:
    found = list(_BLOCK.finditer(text))
    whole = "".join(block[0] for block in found) == text
    owners = _owners([block[1] for block in found], turns) if whole else None
    if owners is None:
        raise ModelError("it does not render every turn in a place of its own")
    images = iter(range(sum(isinstance(part, int) for turn in turns for part in turn.parts)))
    blocks = []
    for block, owned in zip(found, owners, strict=True):
        parts = tuple(_parts(block[2], images))
        shown = sum(isinstance(part, int) for part in parts)
        if shown != sum(isinstance(part, int) for turn in owned for part in turn.parts):
            raise ModelError(f"it leaves out images of a {owned[0].role if owned else block[1]} turn")
        weight = owned[0].weight if owned else ownerless
        blocks.append(Block(block[1], parts, weight, answer=bool(owned) and owned[0].role == "assistant"))
    return blocks


def _owners(roles: Sequence[str], turns: Sequence[Turn]) -> list[list[Turn]] | None:
    """The turns that each block holds: one, or what several tools gave back; none for a system turn of the template."""
    alone = [[turn] for turn in turns]
    together = [
        owned
        for is_tool, run in groupby(turns, lambda turn: turn.role == "tool")
        for owned in ([list(run)] if is_tool else [[turn] for turn in run])
    ]
    for owners in (together, alone):
        if turns[0].role != "system" and roles[:1] == ["system"]:
            owners = [[], *owners]
        same = len(owners) == len(roles) and all(
            (role == "assistant") == (bool(owned) and owned[0].role == "assistant")
            for role, owned in zip(roles, owners, strict=True)
        )
        if same and all(len({turn.weight for turn in owned}) < 2 for owned in owners):
            return owners
    return None


def _parts(text: str, images: Iterator[int]) -> Iterator[str | int]:
    done = 0
    for found in _IMAGE.finditer(text):
        if text[done : found.start()]:
            yield _restored(text[done : found.start()])
        yield next(images, -1)
        done = found.end()
    if text[done:]:
        yield _restored(text[done:])


def _escaped(text: str) -> str:
    if ESCAPE not in text and "<|" not in text:
        return text
    return text.replace(ESCAPE, f"{ESCAPE}0").replace("<|", f"{ESCAPE}1")


def _restored(text: str) -> str:
    return _ESCAPED.sub(lambda found: _ESCAPES[found[0]], text) if ESCAPE in text else text
