"""Local features of a network with small receptive fields: what the base says of windows of FIELD × FIELD pixels."""

from __future__ import annotations

from torch import Tensor

from evaluate.court.views import Base, ask, rectangles

FIELD = 2


def features(base: Base, x: Tensor) -> Tensor:
    """The base's logits for every window [B,K,h,w]."""
    scores = ask(base, x, rectangles(x.shape[2:], FIELD, FIELD)).transpose(1, 2)
    return scores.unflatten(2, (x.shape[2] - FIELD + 1, x.shape[3] - FIELD + 1))


def windows(patch: tuple[int, int], local: Tensor) -> Tensor:
    """The windows [L,h,w] of features that a patch of that size can change. Raises `ValueError` if that is all."""
    tall, wide = (side + FIELD - 1 for side in patch)
    if tall >= local.shape[2] and wide >= local.shape[3]:
        raise ValueError("the patch changes all features")
    return rectangles(local.shape[2:], min(tall, local.shape[2]), min(wide, local.shape[3]))
