"""What attacks refuse."""

from __future__ import annotations

import torch
from torch import Tensor

from robustpatch.classifiers import checks
from robustpatch.classifiers.base import Classifier
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches


def require(holds: bool, name: str, value: object, remedy: str) -> None:
    """Raise `InvalidInput` for an attack's parameter out of range."""
    if not holds:
        raise InvalidInput(f"attack {name} is {value}; it must be {remedy}")


def check_call(classifier: Classifier, x: Tensor, y: Tensor, threat: Patches) -> None:
    """Raise `InvalidInput` for what no attack can be asked, before any work is done."""
    checks.evaluation_mode(classifier.given)
    checks.image_values(x)
    whole = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    if y.shape != x.shape[:1] or not whole or y.device != x.device:
        raise InvalidInput(
            f"labels have shape {tuple(y.shape)}, dtype {y.dtype} and device {y.device}; one whole number for each "
            f"of the {len(x)} images is needed, on {x.device}"
        )
    classes = classifier.num_classes
    low, high = (int(y.min()), int(y.max())) if len(y) else (0, 0)
    if low < 0 or (classes and high >= classes):
        most = classes - 1 if classes else "the number of classes less 1"
        raise InvalidInput(f"labels range from {low} to {high}; they must lie in 0 to {most}")
    threat.check_fits(x.shape[2], x.shape[3])
