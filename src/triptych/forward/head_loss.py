"""Cross entropy where the head stands: the vocabulary is reached chunk by chunk, so logits are never all there.

Of 600 supervised tokens and 152k words, float32 logits alone are 365 MB, and cross entropy makes three of them; a chunk
of 52 tokens needs 32 MB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

FLOAT32 = 4
LIMITS = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}
"""Bytes of the largest logits tensor by default. On a CPU, what glibc's allocator keeps and hands out again: larger
blocks are mapped again each time, and their pages cost more than the arithmetic. A GPU wants long matrix products."""


def default_limit(device: torch.device) -> int:
    """Bytes that logits may take at once on ``device`` unless the run says otherwise."""
    return LIMITS.get(device.type, LIMITS["cuda"])


def tokens_at_once(limit: int, vocabulary: int) -> int:
    """Supervised tokens whose float32 logits fit in ``limit`` bytes; at least one."""
    return max(1, limit // (FLOAT32 * vocabulary))


def summed_loss(
    model: nn.Module, inputs: dict[str, Any], targets: torch.Tensor, weights: torch.Tensor, limit: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy of the model at the positions that it keeps logits of, times their weights, summed, in float32.

    The model runs through its own forward, wrappers of ranks and adapters included; the head computes the loss in
    place of the logits, within that forward.

    Args:
        model: as transformers, peft or accelerate made it.
        inputs: of its forward; its ``logits_to_keep`` names S positions.
        targets: (S,) what is to be predicted there.
        weights: (S,) float32, how much each counts.
        limit: bytes of the largest float32 logits tensor; one token's logits are there in any case.

    Returns:
        The sum, and (S,) the cross entropy of each target, neither weighted nor part of the graph.
    """
    bare = extract_model_from_parallel(model)
    base = bare.get_base_model() if hasattr(bare, "get_base_model") else bare
    head = base.get_output_embeddings()
    tokens = tokens_at_once(limit, base.config.get_text_config().vocab_size)
    plain = type(head) is nn.Linear and head.bias is None

    each = torch.empty(len(targets), device=targets.device)

    def loss(hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.flatten(0, -2)
        if plain:
            found: torch.Tensor = _PlainHeadLoss.apply(  # type: ignore[no-untyped-call]
                hidden, head.weight, (targets, weights), each, tokens, torch.is_grad_enabled()
            )
            return found
        return _any_head_loss(head, hidden, (targets, weights), each, tokens)

    with _in_place_of_logits(head, loss):
        found: torch.Tensor = model(**inputs).logits
    return found, each


@contextmanager
def _in_place_of_logits(head: nn.Module, loss: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Let ``head`` return ``loss(hidden)`` while this lasts, through torch's own hooks."""
    taken: list[torch.Tensor] = []

    def take(_head: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        taken.append(arguments[0])
        return (arguments[0][..., :0, :],)  # the head itself has nothing to do

    def give(_head: nn.Module, _arguments: Any, _output: Any) -> torch.Tensor:
        return loss(taken.pop())

    # First after the head: hooks of others may put its weights away again.
    handles = head.register_forward_pre_hook(take), head.register_forward_hook(give, prepend=True)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


Wanted = tuple[torch.Tensor, torch.Tensor]
"""(S,) targets and (S,) their weights."""


def _any_head_loss(
    head: nn.Module, hidden: torch.Tensor, wanted: Wanted, each: torch.Tensor, tokens: int
) -> torch.Tensor:
    """Through the head's own forward (adapters, a trained copy, 4-bit weights), again in the backward pass."""

    def chunk(states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(head.forward(states).float(), targets, reduction="none")

    losses = torch.cat(
        [
            checkpoint(chunk, states, targets, use_reentrant=False)
            for states, targets in zip(torch.split(hidden, tokens), torch.split(wanted[0], tokens), strict=True)
        ]
    )
    each.copy_(losses.detach())
    return (losses * wanted[1]).sum()


class _PlainHeadLoss(torch.autograd.Function):
    """The head as one matrix: gradients are made beside the loss, so no logits wait for the backward pass.

    With p the softmax of a token's logits, t its target and w its weight, the gradient of its logits is
    w (p - onehot(t)). The weight is applied where the token's states are, which are far smaller than its logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        wanted: Wanted,
        each: torch.Tensor,
        tokens: int,
        learning: bool,
    ) -> torch.Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        matrix = weight.to(dtype)
        for_hidden, for_weight = (learning and needed for needed in ctx.needs_input_grad[:2])
        ctx.hidden = torch.empty_like(hidden) if for_hidden else None
        ctx.weight = torch.zeros_like(weight) if for_weight else None
        for start in range(0, len(hidden), tokens):
            chunk = slice(start, start + tokens)
            states, targets, weights = hidden[chunk].to(dtype), wanted[0][chunk, None], wanted[1][chunk, None]
            log_shares = functional.log_softmax((states @ matrix.T).float(), -1)
            each[chunk] = -log_shares.gather(-1, targets)[:, 0]
            if not (for_hidden or for_weight):
                continue
            ones = torch.ones_like(targets, dtype=torch.float32)
            change = log_shares.exp_().scatter_add_(-1, targets, -ones).to(dtype)
            if ctx.hidden is not None:
                ctx.hidden[chunk] = (change @ matrix) * weights
            states = (states * weights).to(dtype)
            if ctx.weight is not None and dtype is weight.dtype:
                ctx.weight.addmm_(change.T, states)
            elif ctx.weight is not None:
                ctx.weight += change.T @ states
        return (each * wanted[1]).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # In place: of a large vocabulary there is no room for a second gradient.
        made = [None if values is None else values.mul_(gradient) for values in (ctx.hidden, ctx.weight)]
        ctx.hidden = ctx.weight = None
        return made[0], made[1], None, None, None, None
