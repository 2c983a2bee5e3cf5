"""PatchGuard's robust masking of features [B,K,F], with a threshold, and what its certificate has to compare.

All sums are exact: features are multiples of 1/64 up to 64, in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evaluate.court.views import beats_all, last_argmax, of_class

THRESHOLD = 0.5  # of the share of a class's sum that a window needs to be masked; 1 - THRESHOLD is exact, too
CLIP = 64.0


def exact(logits: Tensor) -> Tensor:
    """The logits clipped to [0, CLIP] and rounded to multiples of 1/64."""
    return (logits.double().clamp(0, CLIP) * 64).round() / 64


def masked_sums(local: Tensor, windows: Tensor, threshold: float) -> Tensor:
    """The sum of each class [B,K] without its heaviest of `windows` [L,F], where that holds more than the threshold."""
    total = local.sum(dim=2)
    heaviest = (local @ windows.double().T).amax(dim=2)
    return total - torch.where(heaviest > threshold * total, heaviest, 0.0)


def certified(local: Tensor, windows: Tensor, near: Tensor, threshold: float, corrected: bool) -> tuple[Tensor, Tensor]:
    """The class with the largest sum [B], and whether no features in one of the windows can make another win.

    A rival has at most t / (1 - threshold), t its sum outside of the window. The class itself keeps its sum S there,
    less the heaviest window of what is left where that is more than the threshold of S. Otherwise it was thought to
    keep S before the correction of December 2021; but features added in the window can make a window that overlaps
    with it heavy enough, and so what the windows `near` [L,L] hold besides is lost (`corrected`). Windows that are not
    near are taken with what they held before, as in the published code.
    """
    total, inside = local.sum(dim=2), local @ windows.double().T
    prediction = last_argmax(total)
    holds = torch.ones(len(local), dtype=torch.bool)
    for n, window in enumerate(windows):
        rest = torch.where(window, 0.0, local)
        left = of_class(rest.sum(dim=2), prediction)
        own = of_class_at(torch.where(near[n], rest @ windows.double().T, inside), prediction)
        heaviest = own.amax(dim=1)
        overlap = torch.where(near[n], own, 0.0).amax(dim=1) if corrected else torch.zeros_like(heaviest)
        least = left - torch.where(heaviest > threshold * left, heaviest, overlap)
        holds &= beats_all((1 - threshold) * least, rest.sum(dim=2), prediction, lower_wins=False)
    return prediction, holds


def of_class_at(values: Tensor, classes: Tensor) -> Tensor:
    """The entries [B,L] of values [B,K,L] for one class each."""
    return values[torch.arange(len(values)), classes]


def overlapping(windows: Tensor) -> Tensor:
    """Which of the windows [L,F] have features in common [L,L]."""
    return (windows.double() @ windows.double().T) > 0
