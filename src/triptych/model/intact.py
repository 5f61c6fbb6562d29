"""A model is loaded whole or not at all: every tensor from the folder's files, none made up, none that is no number."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel

from triptych.errors import ModelError

logger = logging.getLogger("triptych")

SHOWN = 3
# With these the names of released models begin.
_OWN = {"model", "visual", "lm_head"}
# How the weights of a quantised layer are called in files of AWQ, GPTQ, FP8 and bitsandbytes.
_PACKED = (".qweight", ".qzeros", ".weight_scale", ".weight_scale_inv", ".quant_state", ".absmax", ".SCB")


def load_whole(path: str, **options: Any) -> PreTrainedModel:
    """A model from its folder or hub name, through transformers' front door.

    Tensors of the files that the model does not have are named in a warning.

    Args:
        path: model folder or hub name.
        options: of ``from_pretrained``.

    Raises:
        ModelError: naming the first tensors that the files do not hold, or hold in another shape, or in which a value
            is not a finite number; or if transformers cannot load it, or it is quantised.
    """
    report: list[str] = []
    try:
        with _report_kept(report):
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                path, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise ModelError("\n".join([f"cannot load the model {path}: {error}", *report])) from error
    model: PreTrainedModel
    model, found = loaded
    unread = sorted(found["unexpected_keys"])
    if found["mismatched_keys"]:
        raise ModelError(_other_shapes(path, sorted(found["mismatched_keys"])))
    if found["missing_keys"]:
        raise ModelError(_missing(path, model, sorted(found["missing_keys"]), unread))
    check_numbers(path, model.named_parameters())
    if unread:
        logger.warning("%s: %s of its files are not part of the model and were not read", path, named(unread))
    return model


def check_numbers(path: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """See that every weight is a finite number; one pass over memory, and no copy of it.

    Args:
        path: where they are from; for the message.
        tensors: by name.

    Raises:
        ModelError: naming the first tensors in which one is not.
    """
    broken = [name for name, values in tensors if not _finite(values)]
    if broken:
        raise ModelError(
            f"{path}: {named(broken)} hold NaN or infinity; the folder is damaged, or was saved after training broke "
            "down: download or export it again"
        )


def named(tensors: Iterable[str]) -> str:
    """``12 tensors (a, b, c, ...)``"""
    names = list(tensors)
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"{len(names):,} tensor{'' if len(names) == 1 else 's'} ({shown})"


def _finite(values: torch.Tensor) -> bool:
    """Whether all are finite; a sum of those that are is finite too, in float32."""
    if not values.is_floating_point() or values.is_meta:
        return True
    total = values.detach().sum(dtype=torch.float32)
    return bool(total.isfinite()) or bool(values.isfinite().all())


def _other_shapes(path: str, mismatched: list[tuple[str, Any, Any]]) -> str:
    name, stored, meant = mismatched[0]
    more = f", and {len(mismatched) - 1:,} more tensors" if len(mismatched) > 1 else ""
    return (
        f"{path}: {name} is {tuple(stored)} in the files and {tuple(meant)} by config.json{more}; the two are not of "
        "one model: use the config.json that the weights were saved with"
    )


def _missing(path: str, model: PreTrainedModel, missing: list[str], unread: list[str]) -> str:
    total = sum(1 for _ in model.named_parameters())
    found = f"{path}: of the model's {total:,} tensors its files do not hold {named(missing)}, which would be random"
    return f"{found}; {_remedy(missing, unread)}"


def _remedy(missing: list[str], unread: list[str]) -> str:
    """What to do about missing tensors, by what is missing and what the files hold instead."""
    packed = [name for name in unread if name.endswith(_PACKED)]
    if packed:
        return f"they are quantised there ({packed[0]}): use the plain release of this model"
    prefixes = {name.partition(".")[0] for name in unread} - _OWN
    if len(prefixes) == 1 and all(name.startswith(tuple(prefixes)) for name in unread):
        prefix = prefixes.pop()
        return f"all names in the files begin with `{prefix}.`: save the model that `{prefix}` wraps, not the wrapper"
    if all(name.startswith("lm_head.") for name in missing):
        return (
            "config.json says tie_word_embeddings: false, so the head must be stored; set it to true if the head "
            "shares the embedding's weights, else save the model again with save_pretrained"
        )
    if unread:
        return f"they hold {named(unread)} instead; these are the weights of another model, or of another version of it"
    return "the folder is incomplete: download it again, or save the model again with save_pretrained"


@contextmanager
def _report_kept(report: list[str]) -> Iterator[None]:
    """Keep transformers' table of what it loaded instead of printing it: it is said here in a sentence."""

    def keep(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if "LOAD REPORT" not in text:
            return True
        report.append(text)
        return False

    source = logging.getLogger("transformers.modeling_utils")
    source.addFilter(keep)
    try:
        yield
    finally:
        source.removeFilter(keep)
