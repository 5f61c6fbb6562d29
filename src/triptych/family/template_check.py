"""Compare Triptych's rendering with the model's own chat template, character by character, before any data is read."""

from __future__ import annotations

from triptych.errors import ModelError, Origin
from triptych.sources.records import ImageRef
from triptych.text.conversation import Conversation, Turn
from triptych.text.template import Template
from triptych.text.tokens.chat_template import ORDERS, PROBES, ChatTemplate, Probe


def verify(template: Template, released: ChatTemplate) -> None:
    """Render the probe conversations and a prompt both ways.

    Raises:
        ModelError: where they differ.
    """
    for probe in PROBES:
        _compare(released.name, template.text(template.encode(_conversation(probe))), released.render(probe))
    for thinking in (None, False):
        options = {} if thinking is None else {"enable_thinking": thinking}
        question = PROBES[0][:1]
        ours = template.encode_prompt(_conversation(question), thinking=thinking)
        _compare(released.name, template.text(ours), released.render(question, prompt=True, **options))


def refused_orders(template: Template, released: ChatTemplate) -> tuple[str, ...]:
    """Orders of turns that the model's own chat template refuses, or renders otherwise than one after the other."""

    def takes(probe: Probe) -> bool:
        try:
            return template.text(template.encode(_conversation(probe))) == released.render(probe)
        except ModelError:
            return False

    return tuple(order for order, probe in ORDERS.items() if not takes(probe))


def _conversation(probe: Probe) -> Conversation:
    turns: list[Turn] = []
    images = 0
    for role, text in probe:
        parts: list[str | int] = []
        for number, piece in enumerate(text.split("<image>")):
            if number:
                parts.append(images)
                images += 1
            if piece:
                parts.append(piece)
        turns.append(Turn(role, tuple(parts), role == "assistant"))  # type: ignore[arg-type]
    return Conversation(tuple(turns), (ImageRef("probe"),) * images, Origin("probe", 1))


def _compare(name: str, ours: str, theirs: str) -> None:
    if ours == theirs:
        return
    same = next(
        (number for number, (left, right) in enumerate(zip(ours, theirs, strict=False)) if left != right),
        min(len(ours), len(theirs)),
    )
    raise ModelError(
        f"{name}: this chat template renders a conversation in a way that Triptych cannot: after "
        f"{theirs[max(0, same - 40) : same]!r} it goes on with {theirs[same : same + 40]!r}, Triptych with "
        f"{ours[same : same + 40]!r}; use the template that the model was released with"
    )
