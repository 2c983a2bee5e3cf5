"""Gradients of foreign models, and what happens where there are none: attacks that need none are used instead."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attacks.base import PatchAttack
from attacks.surfaces import whole_view
from robustpatch.classifiers import checks
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.errors import InvalidInput

REMEDY = (
    "use sparse-rs, which reads scores alone, or standard or quick, which leave out what needs gradients; all others "
    "but the controls (grey, noise, natural) climb, roa and exhaustive too"
)
UNRELATED = (InvalidInput, MemoryError, torch.OutOfMemoryError)  # errors that say nothing of gradients


class NotDifferentiable(InvalidInput):
    """The model answers, but not with a gradient in the image. `evaluations` [B]: what the attack had spent by then."""

    evaluations: Tensor | None = None

    @property
    def cut_off(self) -> bool:
        """True where autograd said that the scores do not depend on the image, not where the model failed."""
        cause = self.__cause__
        words = ("not require grad", "requires grad", "used in the graph", "inference tensor")
        return isinstance(cause, RuntimeError) and any(word in str(cause).lower() for word in words)


def differentiate(function: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The value [P] and the prediction [P] that `function` gives of images x [P,C,H,W], and the gradient of Σ value in
    x; all without a graph.

    Raises `NotDifferentiable` where the function fails with gradients and not without: its output is cut off from the
    image (whole numbers, `detach`, `no_grad`), or it computes with what keeps no gradients (numpy).
    """
    leaf = x.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            value, prediction = function(leaf)
            gradient = torch.autograd.grad(value.sum(), leaf)[0]
    except UNRELATED:
        raise
    except Exception as error:  # foreign code raises what it likes
        if _of_the_machine(error):
            raise
        with torch.no_grad():
            function(x.detach())  # where the gradient is not the reason, this says what is
        raise not_differentiable(error) from error
    return value.detach(), prediction.detach(), gradient


def _of_the_machine(error: Exception) -> bool:
    """Tell whether memory or a GPU's library failed, which torch reports as a plain RuntimeError."""
    words = ("memory", "cuda", "cudnn", "cublas")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def not_differentiable(error: Exception) -> NotDifferentiable:
    """Make the exception for the error that asking for a gradient ended with."""
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return NotDifferentiable(f"the model's output has no gradient in the image ({reason}); {REMEDY}")


def check_differentiable(model: torch.nn.Module, x: Tensor) -> None:
    """Ask for one gradient, in the first of the images [B,C,H,W]. Raises `NotDifferentiable`, and `InvalidInput` for a
    model in training mode.
    """
    classifier, x = as_classifier(model), x[:1]
    checks.evaluation_mode(classifier.given)
    differentiate(whole_view(classifier, x, torch.zeros(len(x), dtype=torch.long, device=x.device)), x)


def climbs(attack: PatchAttack) -> bool:
    """Tell whether the attack needs gradients, as its attribute `needs_gradient` says (False without one)."""
    return bool(getattr(attack, "needs_gradient", False))
