"""What is not read and must not be lost: images under other keys, what changes training, marks of other tools."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any

from triptych.sources.references import holds_images, is_empty, is_reference, words_of

_MEDIA = "is not supported: Triptych trains on text and images"
_TOOLS = "is not read here: `tools` stand beside the dialogue, `tool_calls` in a turn of the assistant"
_PREFERENCE = "belongs to preference training; Triptych learns one answer: keep the chosen one as the last turn"
_THINKING = (
    "is not read here; what is thought stands in an answer's turn, as `reasoning_content` or between `<think>` and "
    "`</think>`"
)
_KWARGS = "changes how a chat template renders; Triptych renders every sample alike"
_TOKENS = "would choose which tokens are learned; write `loss: true`, `loss: false` or a `weight` in a turn"
_OUT = "may leave it out of training; write `loss: false` in a turn, or remove the record"
_SIZES = "sets the size of one image; set `min_pixels` and `max_pixels` of the part, the source or `data`"

_FILLED: dict[str, str] = {
    **dict.fromkeys(("videos", "video", "audios", "audio", "input_audio", "video_url", "audio_url"), _MEDIA),
    **dict.fromkeys(("tools", "functions", "tool_calls", "function_call", "tool_call_id", "tool_responses"), _TOOLS),
    **dict.fromkeys(
        (
            *("chosen", "rejected", "rejected_response", "rejected_responses", "chosen_response", "rejected_images"),
            *("rejected_messages", "chosen_messages", "positive_messages", "negative_messages", "kto_tag"),
        ),
        _PREFERENCE,
    ),
    **dict.fromkeys(
        (
            *("reasoning_content", "reasoning", "reasoning_details", "reasoning_text", "thinking", "thinking_content"),
            *("think", "thought", "thoughts", "cot", "chain_of_thought"),
        ),
        _THINKING,
    ),
    **dict.fromkeys(("chat_template_kwargs", "template_kwargs"), _KWARGS),
}
"""Keys whose content changes the sample, whatever it is."""
_NUMBERS: dict[str, str] = {
    **dict.fromkeys(("mask", "loss_mask", "train_detail", "label_mask"), _TOKENS),
}
"""Keys whose number or truth changes training; 1 and true change nothing, and text under them is a note."""
_LEFT_OUT: dict[str, bool] = {
    **dict.fromkeys(("train_on", "supervised", "is_supervised", "learn", "learnable", "compute_loss"), False),
    **dict.fromkeys(("calculate_loss", "include_loss", "use_loss", "is_trainable", "for_training"), False),
    **dict.fromkeys(("masked", "is_masked", "no_loss", "mask_loss", "ignore_loss", "no_train"), True),
    **dict.fromkeys(("include", "included", "keep", "is_target"), False),
    **dict.fromkeys(("ignore", "ignored", "skip", "skipped", "exclude", "excluded", "masking"), True),
    **dict.fromkeys(("omit", "omitted", "drop", "dropped", "discard", "discarded"), True),
}
"""Keys that leave a turn or record out of training, by the truth that does."""
_LEARNED = frozenset(
    ["train", "training", "trained", "trainable", "learn", "learned", "supervise", "supervised", "supervision", "loss"]
)
_NEGATED = frozenset(["no", "not", "non", "without", "skip", "ignore", "exclude", "mask", "masked", "masking", "drop"])
"""Words of other keys that may say whether something is learned: ``use_for_training``, ``exclude_from_loss``."""
_AS_TEXT: dict[bool | None, str] = {True: "true", False: "false"}
_NEVER_NEUTRAL = ("mask", "label_mask")
_PART_NUMBERS = dict.fromkeys(
    (
        *("min_pixels", "max_pixels", "resized_height", "resized_width"),  # beside a text
        *("total_pixels", "min_tokens", "max_tokens"),
        *("image_resized_height", "image_resized_width"),
    ),
    _SIZES,
)
_OTHER_IMAGE = "would make it another image; save that image as a file of its own and name it"
_PART_CHANGES = dict.fromkeys(
    (*("crop", "crop_box", "crop_bbox", "crop_region", "roi", "rotate", "rotation", "flip", "mirror"),),
    _OTHER_IMAGE,
)
"""Keys of a part that ask for a piece or a turned form of its image."""
_TAG_OF_IMAGE = re.compile(r"<img>\s*(.*?)\s*</img>", re.IGNORECASE | re.DOTALL)
_MARKDOWN = re.compile(r"!\[[^\]\n]*\]\(\s*<?([^)\s>]+)>?[^)\n]*\)")
_FOREIGN = re.compile(
    r"<ImageHere>|<im(?:age|g)[ _-]?\d+>|<\|im(?:age|g)_?\d+\|>|<image_?(?:placeholder|token|soft_token|pad)>|"
    r"<start_of_image>|<IMG_CONTEXT>|<(?:video|audio)>|<\|(?:video|audio)\|>|<bbox>|<ref-object>",
    re.IGNORECASE,
)
_NAMED = re.compile(
    r"<\|?(?:image|img|picture|photo)\s*[:=]\s*[\"']?([^<>|\"']+?)[\"']?\|?>"
    r"|\[\[?(?:image|img|picture|photo)\s*[:=]\s*([^\[\]]+?)\]"
    r"|\[img\]([^\[\]]+)\[/img\]|<\|vision_start\|>([^<]+)<\|vision_end\|>",
    re.IGNORECASE,
)
"""Marks that name the file."""
_CLOSED = re.compile(r"([^<>\n]+)</(?:image|img)[\w-]*>", re.IGNORECASE)
"""What follows a mark that names the file between two tags."""
_LONE = re.compile(
    r"<\|\s*images?\s*\|>|<\s*images?\s*/>|<images?\s+>|<\s+images?\s*>|<images>|<Image>"
    r"|<image[ _-]?(?:token|path|file|name|url)s?>|<image\s+(?:src|path|file|name|url)\s*=[^<>]*>"
)
"""Marks that are plain text beside images, and stand for a lost one where there is none."""
_PADS = re.compile(r"<\|(?:image_pad|video_pad)\|>")
_HINTS = re.compile(r"<\|image\|>|<Image>|<IMAGE>|<img>|\[IMG\]|\[image\]|<image[ _]?\w*>")
_MEDIA_TAGS = ("video", "audio")


def unread_keys(
    data: Mapping[str, Any], read: Collection[str], ignored: Collection[str], known: Collection[str]
) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of what a record or turn holds under keys that are not read; an image comes as ``""``.

    Args:
        data: the record or turn.
        read: its keys that are read.
        ignored: keys that the source leaves out on purpose.
        known: names of the images that the record is read with.
    """
    for key, value in data.items():
        kind = type(value)
        if value is None or key in read or key in ignored:
            continue
        if kind is int or kind is float or kind is bool:
            if key in _NUMBERS and (value != 1 or key in _NEVER_NEUTRAL):
                yield key, f"`{key}` {_NUMBERS[key]}"
            elif leaves_out(key) is bool(value) and (kind is bool or key in _LEFT_OUT):
                yield key, f"`{key}: {str(value).lower()}` {_OUT}"
            elif key == "label" and kind is bool:
                yield key, f"`label` {_PREFERENCE}"
            continue
        if key in _FILLED:
            if not is_empty(value):
                yield key, f"`{key}` {_FILLED[key]}"
        elif kind is str and len(value) < 8 and value.strip().lower() == _AS_TEXT.get(leaves_out(key)):
            yield key, f"`{key}: {value.strip().lower()}` {_OUT}"
        elif key in _NUMBERS and kind is not str and not is_empty(value):
            yield key, f"`{key}` {_NUMBERS[key]}"
        elif holds_images(key, value, known):
            yield key, ""


@lru_cache(maxsize=4096)
def leaves_out(key: str) -> bool | None:
    """The truth under a key that leaves a turn or record out of training; None if neither does."""
    if key in _LEFT_OUT:
        return _LEFT_OUT[key]
    words = words_of(key)
    if _LEARNED.isdisjoint(words):
        return None
    return not _NEGATED.isdisjoint(words)


def unread_part_keys(part: Mapping[str, Any], read: Collection[str], ignored: Collection[str]) -> Iterator[str]:
    """What is wrong with keys of a part of a content that are not read."""
    for key, value in part.items():
        if key in read or key in ignored or is_empty(value):
            continue
        if key in _PART_NUMBERS:
            yield f"`{key}` {_PART_NUMBERS[key]}"
        elif key in _PART_CHANGES:
            if value is not False and value != 0:
                yield f"`{key}` {_PART_CHANGES[key]}"
        elif key == "detail":
            if value == "low":
                yield f"`detail: low` {_SIZES}"
        elif key in _FILLED:
            yield f"`{key}` {_FILLED[key]}"
        elif key == "text" or holds_images(key, value, ()):
            yield f"`{key}` of a part of another kind is not read; give it a part of its own"


def image_tags(text: str) -> list[tuple[int, int, str]]:
    """(start, end, name) of every ``<img>name</img>``."""
    return [(*found.span(), found[1]) for found in _TAG_OF_IMAGE.finditer(text) if is_reference(found[1])]


def foreign_mark(text: str, *, answer: bool, literal: bool = False) -> str | None:
    """What in a text stands for an image in another tool, None where nothing does.

    Args:
        text: a piece of a turn, without its own marks.
        answer: whether the model says it: answers may speak of addresses, and of HTML.
        literal: whether it is a text part, which is text whatever it looks like, unless it names a file.
    """
    if "<" not in text and "[" not in text:
        return None
    if literal:
        tags = image_tags(text)
        if tags:
            return text[slice(*tags[0][:2])]
    else:
        for found in _FOREIGN.finditer(text):
            word = found[0].strip("<|>").lower()
            if word not in _MEDIA_TAGS or (not answer and f"</{word}" not in text and f"`{found[0]}`" not in text):
                return found[0]
        if not answer and "<IMAGE>" in text:
            return "<IMAGE>"
        for found in _NAMED.finditer(text):
            if any(name is not None and is_reference(name.strip()) for name in found.groups()):
                return found[0]
        closed = _CLOSED.match(text)
        if closed is not None and is_reference(closed[1].strip()):
            return f"<image>{closed[0]}"
    for found in _MARKDOWN.finditer(text):
        if is_reference(found[1]) and not (answer and found[1].startswith(("http://", "https://"))):
            return found[0]
    return None


def lone_mark(text: str, *, answer: bool) -> str | None:
    """What is typed in a text and stands for an image where a record has none: a token of the model's own, another mark
    in what the user says.
    """
    found = _PADS.search(text) or (None if answer else _LONE.search(text))
    return found[0] if found else None


def looks_like_mark(text: str) -> str | None:
    """What may be another mark, for the message of a record whose marks and images do not agree."""
    found = _FOREIGN.search(text) or _PADS.search(text) or _LONE.search(text) or _HINTS.search(text)
    return found[0] if found and "=" not in found[0] else None  # one that names a file is no mark


def advice_on_images(lost: list[str], read: list[str]) -> str:
    """What to write where images are under the keys ``lost``, and the record is read with those under ``read``."""
    shown = ", ".join(f"`{key[:60]}`" for key in lost[:6])
    keys = [*read, *lost]
    numbered = {re.sub(r"\d+(?!.*\d)", "{n}", key) for key in keys}
    if len(keys) > 1 and len(numbered) == 1 and "{n}" in (pattern := next(iter(numbered))):
        wanted, option = f'"{pattern}"', f"'images={pattern}'"
    else:
        wanted = f"[{', '.join(keys)}]" if len(keys) > 1 else keys[0]
        option = f"'images={wanted[:200]}'" if len(keys) > 1 else f"images={wanted[:200]}"
    are = "hold images that are" if len(lost) > 1 else "holds images that are"
    return (
        f"{shown} {are} not read; write `columns: {{images: {wanted[:200]}}}` in the source (or give --columns "
        f"{option}), or `ignore: [{', '.join(lost)[:200]}]` to leave them out"
    )


def advice_on_mark(mark: str, *, literal: bool) -> str:
    """That a mark of another tool is not read, and what to write."""
    found = f"{mark[:80]!r} in the text is not read"
    name = mark.strip("<|>").lower()
    if literal:
        return f"{found}; give the image a part of its own"
    if name in ("bbox", "ref-object"):
        return f"{found}: write the box or name in its place as the model writes it, or list it under `objects`"
    if name in _MEDIA_TAGS:
        return f"{found}: {name} {_MEDIA}; as a text part of the content it is plain text"
    if mark.startswith("![") or _NAMED.search(mark) or _CLOSED.search(mark):
        return f"{found}; write <image> in its place and list the file under `images`"
    general = re.sub(r"\d+", "{n}", mark, count=1)
    advice = f"write `mark: \"{general}\"` in the source (or give --mark '{general}')"
    return f"{found}; {advice}; as a text part it is plain text"
