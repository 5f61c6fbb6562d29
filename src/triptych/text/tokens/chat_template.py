"""What a model's chat template does beyond plain ChatML, found out by rendering it, not by its name.

Models of one family come with different templates (Qwen3-VL Instruct and Thinking share their ``model_type``), and
people change them. So the few properties in which they differ are read off rendered probe conversations.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from triptych.errors import ModelError

BoxForm = Literal["marked", "absolute", "relative"]
"""``<|box_start|>(x1,y1),(x2,y2)<|box_end|>`` from 0 to 1000; ``[x1, y1, x2, y2]`` in pixels of the resized image; the
same from 0 to 1000."""

if TYPE_CHECKING:
    from jinja2 import Template as JinjaTemplate

_SYSTEM, _TURN_END = "<|im_start|>system\n", "<|im_end|>"
_THOUGHT = "a text that no template holds"
_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
THINK_START, THINK_END = "<think>", "</think>"
TOOL_START, TOOL_END = "<tool_response>", "</tool_response>"


@dataclass(frozen=True, slots=True)
class ChatStyle:
    """How a template renders a conversation, where templates of the field differ."""

    default_system: str | None = None
    """System prompt that is inserted where a conversation has none."""
    thinking: Literal["none", "last", "all"] = "none"
    """Which answers carry a thinking block: none, those after the last question, or all; others lose theirs."""
    skips_thinking: bool = False
    """Whether a prompt may close the block at once (``enable_thinking=False``), so that no thinking is generated."""
    thinks_by_default: bool = False
    """Whether a prompt opens the block unless told otherwise."""
    trims: bool = False
    """Whether white space around a message is dropped."""
    answers_tools: bool = False
    """Whether a user's ``<tool_response>`` is no question: the thinking of the answer before it is kept."""
    effort: str | None = None
    """How much thought is asked for, at the head of every system turn unless a prompt turns thinking off."""
    boxes: BoxForm = "relative"
    """How the family writes boxes"""
    tools: str = ""
    """Hash of a template that renders tools, their calls and what they give back; empty for another"""
    refuses: tuple[str, ...] = ()
    """Orders of turns, of ``ORDERS``, that it does not render one after the other."""


Probe = Sequence[tuple[str, str]]

# "<image>" stands for an image. White space at the ends tells whether it is kept; two answers, which of them thinks.
PROBES: tuple[Probe, ...] = (
    (("user", "<image>One"), ("assistant", "Two")),
    (
        ("system", " Be\n"),
        ("user", " Three\n<image> and <image>four "),
        ("assistant", "Five "),
        ("user", "<image>Six"),
        ("assistant", "Seven"),
    ),
    (
        ("user", "Eight"),
        ("assistant", f"{THINK_START}\nNine\n{THINK_END}\n\nTen"),
        ("user", "Eleven"),
        ("assistant", f"{THINK_START}\nTwelve\n{THINK_END}\n\nThirteen"),
    ),
    (
        ("user", "Fourteen"),
        ("assistant", f"{THINK_START}\nFifteen\n{THINK_END}\n\nSixteen"),
        ("user", f"{TOOL_START}\nSeventeen\n{TOOL_END}"),
        ("assistant", f"{THINK_START}\nEighteen\n{THINK_END}\n\nNineteen"),
    ),
)

_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "probe", "description": "A probing tool", "parameters": {"type": "object", "properties": {}}},
}
_TOOL_PROBE: list[dict[str, Any]] = [
    {"role": "user", "content": "Twenty"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "call it", "arguments": {"with this": "value"}}}],
    },
    {"role": "tool", "content": "Twenty-one"},
    {"role": "assistant", "content": "Twenty-two"},
]
_TOOL_PROBED = ("A probing tool", "Twenty", "call it", "with this", "value", "Twenty-one", "Twenty-two")
"""What comes out of ``_TOOL_PROBE``, one after the other."""

LATE_SYSTEM, NO_QUESTION = "a system turn after others", "answers without a question"
ANSWER_FIRST, TWO_IN_A_ROW = "an answer before the first question", "two turns of one role in a row"
ORDERS: dict[str, Probe] = {
    LATE_SYSTEM: (
        *(("user", "One"), ("assistant", "Two"), ("system", "Three")),
        *(("user", "Four"), ("assistant", "Five")),
    ),
    NO_QUESTION: (("assistant", "One <image>"),),
    ANSWER_FIRST: (("assistant", "One"), ("user", "Two <image>"), ("assistant", "Three")),
    TWO_IN_A_ROW: (
        *(("user", "One"), ("user", "Two"), ("assistant", "Three"), ("assistant", "Four")),
        *(("user", "Five"), ("assistant", "Six")),
    ),
}
"""Orders that some templates take and some refuse."""


def orders(roles: Sequence[str]) -> list[str]:
    """Which of ``ORDERS`` a conversation has."""
    found = []
    if "system" in roles[1:]:
        found.append(LATE_SYSTEM)
    if "user" not in roles:
        found.append(NO_QUESTION)
    elif "assistant" in roles[: roles.index("user")]:
        found.append(ANSWER_FIRST)
    if any(one == two for one, two in pairwise(roles)):
        found.append(TWO_IN_A_ROW)
    return found


def trimmed(parts: Sequence[str | int]) -> list[str | int]:
    """A message without the white space at its ends."""
    kept = list(parts)
    for end, strip in ((0, str.lstrip), (-1, str.rstrip)):
        if kept and isinstance(kept[end], str):
            text = strip(str(kept[end]))
            kept[end : end + 1 or None] = [text] if text else []
    return kept


def split_thinking(parts: Sequence[str | int], *, trims: bool) -> tuple[str, Sequence[str | int]]:
    """An answer's thinking, and what follows it, as the chat templates cut at ``</think>``.

    An answer that shows an image before that mark is left whole: no image is lost.
    """
    marked = [number for number, part in enumerate(parts) if isinstance(part, str) and THINK_END in part]
    if not marked or any(isinstance(part, int) for part in parts[: marked[-1]]):
        return "", parts
    before = "".join(str(part) for part in parts[: marked[-1] + 1])
    thought = before.split(THINK_END)[0].rstrip("\n").split(THINK_START)[-1].strip("\n")
    rest = before.split(THINK_END)[-1].lstrip("\n")
    thought = thought.strip() if trims else thought
    return thought, [*([rest] if rest else []), *parts[marked[-1] + 1 :]]


def read_chat_template(folder: Path) -> str | None:
    """The chat template of a model folder, wherever its version of transformers keeps it; None if it has none.

    Raises:
        ModelError: if a file that should hold it cannot be read.
    """
    path = folder / "chat_template.jinja"
    try:
        if path.exists():
            return path.read_text(encoding="utf-8")
        for name in ("chat_template.json", "tokenizer_config.json"):
            path = folder / name
            if path.exists():
                found = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
                if isinstance(found, list):  # several templates by name
                    found = {item["name"]: item["template"] for item in found}.get("default")
                if found is not None:
                    return str(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"cannot read the chat template in {path}: {error}") from error
    return None


class ChatTemplate:
    """A chat template in Jinja, rendered as transformers renders it."""

    def __init__(self, source: str, name: str) -> None:
        """
        Args:
            source: the template.
            name: where it is from; for messages.

        Raises:
            ModelError: if it is not valid.
        """
        self.source = source
        self.name = name
        _ = self._template  # compiled now: one that is not valid is said here

    def __getstate__(self) -> dict[str, str]:
        """Without what is compiled: another process compiles it when it renders."""
        return {"source": self.source, "name": self.name}

    @cached_property
    def _template(self) -> JinjaTemplate:
        return _compile(self.source, self.name)

    @cached_property
    def reads_reasoning(self) -> bool:
        """Whether it takes the thought of an answer apart from its content; some templates take it only so."""
        thinks = {"role": "assistant", "content": "Two", "reasoning_content": _THOUGHT}
        return self._shows(_THOUGHT, {"role": "user", "content": "One"}, thinks)

    @cached_property
    def as_parts(self) -> bool:
        """Whether it takes texts as parts only."""
        return not self._shows(_THOUGHT, {"role": "user", "content": _THOUGHT}) and self._shows(
            _THOUGHT, {"role": "user", "content": _content(_THOUGHT, as_parts=True)}
        )

    def why_unusable(self) -> str | None:
        """Why no conversation about images can be rendered with it; None if one can.

        Raises:
            ModelError: if it refuses a plain conversation.
        """
        if f"<|im_start|>user\nOne{_TURN_END}" not in self.render((("user", "One"), ("assistant", "Two"))):
            return "renders no turns in ChatML"
        try:
            shown = self.render(PROBES[0])
        except ModelError:
            return "takes texts only"
        return None if _IMAGE in shown else "renders no images"

    def _shows(self, wanted: str, *messages: Mapping[str, Any]) -> bool:
        """Whether a text of these messages comes out."""
        try:
            return wanted in self._template.render(messages=messages, tools=None, documents=None)
        except Exception:  # whatever the template's own code raises; then it does not
            return False

    def _message(self, role: str, text: str) -> dict[str, Any]:
        if role == "assistant" and self.reads_reasoning and THINK_END in text:
            thought, _, said = text.partition(THINK_END)
            thought = thought.partition(THINK_START)[2].strip("\n")
            return {"role": role, "content": said.lstrip("\n"), "reasoning_content": thought}
        return {"role": role, "content": _content(text, as_parts=self.as_parts)}

    def render(self, probe: Probe, *, prompt: bool = False, **options: Any) -> str:
        """A conversation as text; with ``prompt``, up to and including the header of the answer to come.

        Raises:
            ModelError: if the template refuses it.
        """
        messages = [self._message(role, text) for role, text in probe]
        try:
            return self._template.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=prompt, **options
            )
        except Exception as error:  # the template's own code: joining a text and a list is a TypeError
            raise ModelError(f"{self.name}: the chat template refuses a plain conversation: {error}") from error

    def render_messages(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any], **options: Any) -> str:
        """Messages in the form of transformers, which may call tools, as text.

        Raises:
            ModelError: if the template refuses them.
        """
        try:
            return self._template.render(messages=messages, tools=tools or None, documents=None, **options)
        except Exception as error:  # the template's own code
            raise ModelError(f"{self.name}: the chat template refuses a conversation: {error}") from error

    def _tool_hash(self) -> str:
        """See ``ChatStyle.tools``."""
        try:
            rest = self.render_messages(_TOOL_PROBE, [_TOOL])
        except ModelError:
            return ""
        for wanted in _TOOL_PROBED:
            _, found, rest = rest.partition(wanted)
            if not found:
                return ""
        return hashlib.sha256(self.source.encode()).hexdigest()[:16]

    def style(self) -> ChatStyle:
        """The properties in which it differs from plain ChatML.

        Raises:
            ModelError: if it refuses a plain conversation.
        """
        question = PROBES[0][:1]
        opened, closed = f"{THINK_START}\n", f"{THINK_START}\n\n{THINK_END}\n\n"
        prompt = self.render(question, prompt=True)
        never = self.render(question, prompt=True, enable_thinking=False)
        thoughts = self.render(PROBES[2]).count(THINK_START)
        thinks = self.render(PROBES[0]).count(THINK_START) > 0  # a block even where the answer has none
        head, turn, _ = self.render(question).partition("<|im_start|>user\n")
        system = head.removeprefix(_SYSTEM).removesuffix(f"{_TURN_END}\n") if turn and head else None
        # A default stands in for the text of a system turn; an instruction stands before it.
        instructs = system is not None and self.render(PROBES[1]).startswith(f"{_SYSTEM}{system}\n\n")
        return ChatStyle(
            default_system=None if instructs else system,
            effort=system if instructs else None,
            thinking=("none" if not thinks else "last" if thoughts == 1 else "all"),
            skips_thinking=never.endswith(closed),
            thinks_by_default=prompt.endswith(opened),
            trims=" Be\n" not in self.render(PROBES[1]),
            answers_tools=thinks and thoughts == 1 and self.render(PROBES[3]).count(THINK_START) == 2,
            tools=self._tool_hash(),
        )


def _content(text: str, *, as_parts: bool = False) -> str | list[dict[str, str]]:
    pieces = text.split("<image>")
    if len(pieces) == 1 and not as_parts:
        return text
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(pieces):
        if number:
            parts.append({"type": "image"})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _compile(source: str, name: str) -> JinjaTemplate:
    from jinja2 import TemplateError
    from jinja2.exceptions import TemplateError as Refused
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}``: marks answers for training elsewhere; what it holds is rendered as it is."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise Refused(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    # Jinja's own would write < and > for HTML.
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise ModelError(f"{name}: the chat template is not valid: {error}") from error
