"""Tools that a record offers, and the calls that its answers make, in whichever form a data set writes them.

{"tools": [{"type": "function", "function": {"name", "description", "parameters"}}]}     or one JSON string
{"role": "assistant", "content": "...", "tool_calls": [{"function": {"name", "arguments"}}]}
{"from": "function_call", "value": "{\\"name\\": ..., \\"arguments\\": {...}}"}               or a list of them
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from triptych.sources.records import json_type
from triptych.sources.references import is_empty
from triptych.text.shapes.found import ShapeError

TOOL_KEYS = ("tools", "functions")
"""Keys of a record that list tools."""
CALL_KEYS = ("tool_calls", "function_call")
"""Keys of a turn that hold calls."""
THOUGHT_KEYS = ("reasoning_content", "reasoning")
"""Keys of a turn that hold what is thought before its answer."""
_FORM = 'a call is {"name": ..., "arguments": {...}}'


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that an answer makes."""

    name: str
    arguments: str
    """An object as JSON, in the form that chat templates write it"""


@dataclass(frozen=True, slots=True)
class Tooled:
    """What an answer holds beside its text."""

    calls: tuple[ToolCall, ...] = ()
    thought: str = ""


NO_TOOLS = Tooled()


def offered_tools(data: Mapping[str, Any], keys: Sequence[str], *, padded: bool) -> tuple[str, ...]:
    """The definitions of the tools that a record offers, each an object as JSON.

    Args:
        data: the record.
        keys: those of it that hold tools: a list, or one written as a string.
        padded: whether objects may hold nulls that the data never had, as those of tables do.

    Raises:
        ShapeError: if they are no tools, or two keys hold different ones.
    """
    found = [_tools(key, data[key], padded=padded) for key in keys]
    if len(found) > 1 and found[0] != found[1]:
        raise ShapeError(f"`{keys[0]}` and `{keys[1]}` hold different tools; keep one of them")
    return found[0] if found else ()


def _tools(key: str, value: Any, *, padded: bool) -> tuple[str, ...]:
    """The tools under one key; a bare function is put into its ``{"type", "function"}``."""
    found = _parsed(value, f"`{key}`") if isinstance(value, str) else value
    tools = []
    for number, item in enumerate(found if isinstance(found, list | tuple) else [found], 1):
        where = f"tool {number} of `{key}`"
        tool = _parsed(item, where) if isinstance(item, str) else item
        if not isinstance(tool, Mapping):
            raise ShapeError(f"{where} is {json_type(tool)}; a tool is an object with a `name`")
        tool = _unpadded(tool) if padded else tool
        wrapped = isinstance(tool.get("function"), Mapping)
        if not isinstance(tool["function"].get("name") if wrapped else tool.get("name"), str):
            raise ShapeError(f'{where} has no `name`: a tool is {{"type": "function", "function": {{"name": ...}}}}')
        tools.append(_written(tool if wrapped else {"type": "function", "function": tool}, where))
    return tuple(tools)


def beside_text(message: Mapping[str, Any], ignored: Collection[str], *, answer: bool, padded: bool) -> Tooled:
    """The calls and the thought that a turn keeps apart from its text.

    Args:
        message: the turn.
        ignored: keys that the source leaves out on purpose.
        answer: whether the assistant speaks.
        padded: as in ``offered_tools``.

    Raises:
        ShapeError: if they are not what they should be, or stand in another turn.
    """
    keys = [key for key in (*CALL_KEYS, *THOUGHT_KEYS) if message.get(key) is not None and key not in ignored]
    found = {key: message[key] for key in keys if not is_empty(message[key])}
    if not found:
        return NO_TOOLS
    if not answer:
        raise ShapeError(f"`{next(iter(found))}` belongs to a turn of the assistant; remove it here")
    calls = [_calls(key, found[key], padded=padded) for key in CALL_KEYS if key in found]
    if len(calls) > 1 and calls[0] != calls[1]:
        raise ShapeError("`tool_calls` and `function_call` of a turn differ; keep one of them")
    thoughts = [found[key] for key in THOUGHT_KEYS if key in found]
    if any(not isinstance(thought, str) or thought != thoughts[0] for thought in thoughts):
        raise ShapeError(f"`{' and '.join(key for key in THOUGHT_KEYS if key in found)}` of a turn is one text")
    return Tooled(calls[0] if calls else (), thoughts[0] if thoughts else "")


def spoken_calls(content: Any, key: str, beside: Tooled, *, padded: bool) -> Tooled:
    """The calls of a turn whose content is nothing else, and what is thought in front of them.

    Args:
        content: of the turn.
        key: that holds it.
        beside: what the turn holds beside it.
        padded: as in ``offered_tools``.

    Raises:
        ShapeError: if it is something else, or the turn says a thing twice.
    """
    thought = ""
    if isinstance(content, str):
        start, mark, rest = content.partition("</think>")
        if mark and start.lstrip().startswith("<think>"):
            thought, content = start.lstrip().removeprefix("<think>").strip("\n"), rest
    calls = _calls(key, content, padded=padded)
    if not calls:
        raise ShapeError(f"`{key}` of a turn that calls tools holds no call; {_FORM}")
    if beside.calls or (thought and beside.thought):
        raise ShapeError(f"`{key}` of a turn that calls tools holds them already, and its thought; keep one of each")
    return Tooled(calls, thought or beside.thought)


def _calls(key: str, value: Any, *, padded: bool) -> tuple[ToolCall, ...]:
    if is_empty(value):
        return ()
    found = _parsed(value, f"`{key}`") if isinstance(value, str) else value
    items = found if isinstance(found, list | tuple) else [found]
    named = [(f"call {number} of `{key}`", item) for number, item in enumerate(items, 1) if item is not None]
    return tuple(_call(item, where, padded=padded) for where, item in named)


def unasked(roles: Sequence[str]) -> int | None:
    """The first turn of a tool that follows no answer, and so was called by none; None if there is none."""
    before = ("", *roles)
    wrong = (
        number for number, role in enumerate(roles) if role == "tool" and before[number] not in ("assistant", role)
    )
    return next(wrong, None)


def _call(item: Any, where: str, *, padded: bool) -> ToolCall:
    item = _parsed(item, where) if isinstance(item, str) else item
    if not isinstance(item, Mapping):
        raise ShapeError(f"{where} is {json_type(item)}; {_FORM}")
    function = item.get("function")
    said: Mapping[str, Any] = function if isinstance(function, Mapping) else item
    name = function if isinstance(function, str) else said.get("name")
    if not isinstance(name, str) or not name:
        raise ShapeError(f"{where} has no `name`; {_FORM}")
    arguments = said.get("arguments", said.get("parameters"))
    if isinstance(arguments, str):
        arguments = _parsed(arguments, f"`arguments` of {where}") if arguments.strip() else {}
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, Mapping):
        raise ShapeError(f"`arguments` of {where} is {json_type(arguments)}; it is an object, or one written as JSON")
    _written(name, where)
    return ToolCall(name, _written(_unpadded(arguments) if padded else arguments, where))


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, strict=False)
    except ValueError as error:
        raise ShapeError(f"{where} is no JSON ({error}): {reprlib.repr(text)}; fix the text") from error


def _written(value: Any, where: str) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()  # no half of a character
    except (TypeError, ValueError) as error:
        raise ShapeError(f"{where} holds what JSON has no form for; write it as text") from error
    return text


def _unpadded(value: Any) -> Any:
    """A value of a table without the nulls that its columns add to objects."""
    if isinstance(value, Mapping):
        return {key: _unpadded(item) for key, item in value.items() if item is not None}
    return [_unpadded(item) for item in value] if isinstance(value, list | tuple) else value
