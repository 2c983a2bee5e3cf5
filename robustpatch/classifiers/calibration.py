"""How far the scores of a classifier move between evaluations: what `guard` has to cover, measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from robustpatch.classifiers import checks, witness
from robustpatch.classifiers.smoothed import SmoothedClassifier


@dataclass(frozen=True)
class Calibration:
    """The largest changes of any score that were measured on so many `images`.

    `itself`: over batch sizes, chunks, companions and repetition. `float32`: from the scores of a float32 copy of the
    model, computed outside autocast and without TF32; None where the model itself computes in float32.
    """

    itself: float
    float32: float | None
    images: int

    @property
    def largest(self) -> float:
        return self.itself if self.float32 is None else max(self.itself, self.float32)


def calibrate_guard(model: SmoothedClassifier, x: Float[Tensor, "B C H W"]) -> float:
    """The largest change of any score of the images `x` that `calibrate` measures.

    A lower bound on what `guard` has to be: choose the guard well above it. Raises `InvalidInput` where it exceeds the
    model's guard.
    """
    return calibrate(model, x).largest


def calibrate(model: SmoothedClassifier, x: Float[Tensor, "B C H W"]) -> Calibration:
    """How far the scores of the images move over batch sizes, chunks, companions and repetition, and, for a one-pass
    base, from enumeration: the scores of band n of the image in which all but band n is replaced; and, in less than
    float32, how far they are from float32's, with NaN and large numbers left in memory before.

    A kernel may give the same wrong scores every time, so that agreement with itself shows nothing. Raises
    `InvalidInput` where either exceeds the model's guard.
    """
    checks.evaluation_mode(model)
    checks.image_values(x)
    found = witness.deviation_from_float32(model, x)
    if found is not None:
        witness.refuse_beyond(found, model, x.device, model.guard_on(x.device))
    itself = _between_evaluations(model, x)
    return Calibration(itself, None if found is None else found.score, len(x))


def _between_evaluations(model: SmoothedClassifier, x: Float[Tensor, "B C H W"]) -> float:
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
