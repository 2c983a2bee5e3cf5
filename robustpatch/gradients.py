"""Gradients that are not those of the value: straight through, computed again chunk by chunk, and without NaN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class StraightThrough(torch.autograd.Function):
    """The second argument, exactly, with the gradient of the first. (soft + (hard - soft) would round ties apart.)"""

    @staticmethod
    def forward(ctx, soft: Tensor, hard: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0], None


def in_chunks(function: Callable[..., Tensor], chunks: Sequence[tuple[Any, ...]]) -> Tensor:
    """The function of each chunk, one after the other. With gradients, more than one chunk is computed again in the
    backward pass, so that the size of a chunk bounds memory there too.
    """
    again = torch.is_grad_enabled() and len(chunks) > 1
    return torch.cat([checkpoint(function, *one, use_reentrant=False) if again else function(*one) for one in chunks])


def numbers_backward(x: Tensor) -> Tensor:
    """`x` itself; whatever in its gradient is no number is replaced by 0, before it meets anything else.

    Where an ablation overflows its gradient may be NaN, and would hide that of all others that keep the same pixels.
    """
    if x.requires_grad:
        x = x.view_as(x)  # the hook is to stay off the caller's own tensor
        x.register_hook(lambda gradient: torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0))
    return x
