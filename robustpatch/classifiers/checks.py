"""Checks of images, outputs and modes before anything is certified."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustpatch.errors import InvalidInput


def inputs(model: nn.Module, x: Tensor) -> None:
    """Refuse a model in training mode, and images that are not finite or not in [0, 1]."""
    evaluation_mode(model)
    image_values(x)


def shape_and_type(x: Tensor) -> None:
    """Refuse all but a batch of float images."""
    if not isinstance(x, Tensor):
        raise InvalidInput(f"images are a {type(x).__name__}; pass a torch tensor of floats in [0, 1]")
    if not torch.is_floating_point(x):
        raise InvalidInput(f"images have dtype {x.dtype}; pass floats in [0, 1] (for bytes: x.float() / 255)")
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise InvalidInput(f"images have shape {tuple(x.shape)}; pass [batch, channels, height, width]")


def image_values(x: Tensor) -> None:
    """Refuse images that are not finite or not in [0, 1]: nothing is certified about them."""
    shape_and_type(x)
    x = x.detach()
    if not bool(torch.isfinite(x).all()):
        raise InvalidInput("images contain NaN or infinite values; clean the input, nothing is certified about those")
    low, high = (float(x.min()), float(x.max())) if x.numel() else (0.0, 1.0)
    if low < 0 or high > 1:
        hint = "divide by 255" if high > 2 and low >= 0 else "scale to [0, 1] (normalisation belongs into the base)"
        raise InvalidInput(f"images range from {low:g} to {high:g}; they must lie in [0, 1]: {hint}")


def finite_scores(scores: Tensor) -> None:
    """Refuse scores that are not numbers: a NaN compares false with every threshold and would look like abstention."""
    if not bool(torch.isfinite(scores).all()):
        raise not_finite()


def not_finite() -> InvalidInput:
    """The error of a network that returns NaN or infinity for an image that is to be certified."""
    return InvalidInput(
        "the base returned NaN or infinite logits; nothing can be certified with it: mend it (a division by 0? an "
        "overflow, in less than float32?)"
    )


def evaluation_mode(model: nn.Module) -> None:
    """Refuse a model in training mode, as a whole or in one of its parts."""
    training = next((name or type(module).__name__ for name, module in model.named_modules() if module.training), None)
    if training is not None:
        raise InvalidInput(
            f"{training} is in training mode, where batch statistics and dropout couple images; call model.eval() first"
        )
