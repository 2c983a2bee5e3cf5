"""How far the scores of a classifier move between evaluations: what `guard` has to cover, measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from robustpatch import checks

if TYPE_CHECKING:
    from robustpatch.smoothing import SmoothedClassifier


def calibrate_guard(model: SmoothedClassifier, x: Float[Tensor, "B C H W"]) -> float:
    """The largest change of any score of the images `x` seen over batch sizes, chunks, companions and repetition, and,
    for a one-pass base, against enumeration: the scores of band n of the image in which all but band n is replaced.

    A lower bound on what `guard` has to be: choose the guard well above it. Raises `InvalidInput` where the deviation
    measured exceeds the model's guard.
    """
    checks.evaluation_mode(model)
    checks.image_values(x)
    reference = checks._scores(model, x)
    # Coupling hides in company of one's own kind: noise, black and white images are company too.
    company = torch.cat([checks._noise(x), torch.zeros_like(x[:1]), torch.ones_like(x[:1])])
    runs = [
        checks._scores(model, x),
        checks._scores(model, torch.cat([company, x]))[len(company) :],
        checks._scores(model, x.flip(0)).flip(0),
    ]
    runs += [torch.cat([checks._scores(model, some) for some in x.split(size)]) for size in (1, 2, 3)]
    chunk, n = model.chunk, reference.shape[1]
    try:
        for size in (1, 3, max(1, n - 1), n * len(x)):
            model.chunk = size
            runs.append(checks._scores(model, x))
    finally:
        model.chunk = chunk
    if model.one_pass:
        runs.append(checks._scores(model, x, torch.arange(n, device=x.device)))
    deviation = checks._within_guard(model, reference, runs, "batch sizes, chunks and companions")
    return max([deviation, *(checks._base_is_sound(model, image[None]) for image in x)])
