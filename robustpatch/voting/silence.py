"""Ablations whose scores are no numbers: they vote for no class.

A patch can make a base overflow on the ablations that it touches: in float16 a sum beyond 65,504 is infinite, and the
softmax of an infinite logit is NaN. All proofs let an ablation that is touched add anything to each class, from nothing
to its whole range. So one with any score that is NaN or infinite adds nothing to any class: one of the answers that the
proofs allow for. Nobody can tell from an attacked image which ablations are touched, so `predict` counts like this
wherever it meets such scores. `certify` refuses them: on a clean image they say that the base is broken.

Ablations are told apart by selection, never by multiplication: 0 · NaN is NaN.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def has_score(scores: Float[Tensor, "*any K"]) -> Bool[Tensor, "*any 1"]:
    """True for ablations that have a score: that of each class is a finite number."""
    return torch.isfinite(scores).all(dim=-1, keepdim=True)


def names_class(logits: Float[Tensor, "*any K"]) -> Bool[Tensor, "*any"]:
    """True where one class has the largest logit: none is NaN, and the largest is finite. -inf rules a class out."""
    return torch.isfinite(logits.amax(dim=-1))  # NaN where any is


def answered(prediction: Int[Tensor, " B"], scores: Float[Tensor, "B N K"]) -> Int[Tensor, " B"]:
    """The predictions; -1 for images of which not one ablation has a score."""
    return torch.where(has_score(scores).flatten(1).any(dim=1), prediction, -1)
