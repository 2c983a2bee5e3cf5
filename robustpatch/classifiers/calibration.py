"""Measurements of how far scores move: between evaluations, and, in less than float32, from float32's.

The guard has to cover both. A kernel may give the same wrong scores every time, so agreement with itself proves nothing
of a model in less than float32: it is held against a float32 copy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from robustpatch import precision
from robustpatch.classifiers import base_check, checks
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.smoothed import SmoothedClassifier, voting_classifier
from robustpatch.errors import InvalidInput

ROUNDING = 0.25  # of the largest logit, and of 1 where all are smaller: 64 times the rounding of a bfloat16 number
_BLOCKS = [2**power for power in range(9, 21)]  # numbers of two bytes in each block of memory: 1 KiB to 2 MiB
_PRODUCTS = ("conv", "mm", "linear", "attention")  # in the names of the operators that have kernels of their own


@dataclass(frozen=True)
class Calibration:
    """The largest changes of any score that were measured on so many `images`.

    `itself`: over batch sizes, chunks, neighbours and repetition. `float32`: from the scores of a float32 copy of the
    model, computed outside autocast and without TF32; None where the model itself computes in float32.
    """

    itself: float
    float32: float | None
    images: int

    @property
    def largest(self) -> float:
        return self.itself if self.float32 is None else max(self.itself, self.float32)


def calibrate_guard(model: SmoothedClassifier, x: Float[Tensor, "B C H W"]) -> float:
    """The largest change of any score of the images `x` that `calibrate` measures: choose the guard well above it.

    Raises `InvalidInput` where it exceeds the model's guard.
    """
    return calibrate(model, x).largest


def calibrate(model: SmoothedClassifier, x: Float[Tensor, "B C H W"]) -> Calibration:
    """Measure the changes of the images' scores over batch sizes, chunks, neighbours and repetition; for a one-pass
    base, from enumeration: the scores of band n of the image in which all but band n is replaced; and, in less than
    float32, the distance from float32's, with NaN and large numbers left in memory before.

    Raises `InvalidInput` where either exceeds the model's guard.
    """
    checks.inputs(model, x)
    found = deviation_from_float32(model, x)
    if found is not None:
        refuse_beyond(found, model, x.device, model.guard_on(x.device))
    itself = _between_evaluations(model, x)
    return Calibration(itself, None if found is None else found.score, len(x))


def _between_evaluations(model: SmoothedClassifier, x: Float[Tensor, "B C H W"]) -> float:
    def scored(images: Tensor) -> Tensor:
        return base_check.scores_of(model, images)

    reference = scored(x)
    # Coupling may show beside other kinds of images alone: noise, black and white too.
    others = torch.cat([base_check.noise(x), torch.zeros_like(x[:1]), torch.ones_like(x[:1])])
    runs = [scored(x), scored(torch.cat([others, x]))[len(others) :], scored(x.flip(0)).flip(0)]
    runs += [torch.cat([scored(some) for some in x.split(size)]) for size in (1, 2, 3)]
    chunk, n = model.chunk, reference.shape[1]
    try:
        for size in (1, 3, max(1, n - 1), n * len(x)):
            model.chunk = size
            runs.append(scored(x))
    finally:
        model.chunk = chunk
    if model.one_pass:
        runs.append(base_check.scores_of(model, x, torch.arange(n, device=x.device)))
    deviation = base_check.within_guard(model, reference, runs, "batch sizes, chunks and other images")
    return max([deviation, *(base_check.check_image(model, image[None]) for image in x)])


@dataclass(frozen=True)
class Deviation:
    """The largest distances of logits and scores from those that float32 computes of the same images.

    `score` is of what the voting makes of logits, in [0, 1]: the unit of a smoothed classifier's guard. Both are NaN
    where a logit was. `largest` is the largest absolute logit in float32.
    """

    logit: float
    score: float
    largest: float

    @property
    def explained(self) -> bool:
        """Tells whether rounding explains it: |logit - logit in float32| ≤ `ROUNDING`·max(1, largest |logit|).

        A network of L layers in bfloat16, which rounds to 1/256, is off by about √L/256 of its largest logit: 3% of 50
        layers. What is beyond 25% is another function.
        """
        return self.logit <= ROUNDING * max(1.0, self.largest)


@torch.no_grad()
def deviation_from_float32(
    model: nn.Module, x: Float[Tensor, "B C H W"], logits: Callable[[Any, Tensor], Tensor] | None = None
) -> Deviation | None:
    """The distance of a smoothed classifier's scores of all ablations of the images, or of a network's outputs, from
    those of a float32 copy, computed outside autocast and without TF32; None where they are in float32 themselves.

    `logits(model, x)` may ask for others than these. They are computed twice: as they are, and with memory filled with
    NaN and given back before each product, so that a kernel which reads what nobody wrote shows. `model` has to be in
    evaluation mode. It says nothing of other images, and a base that leaves float32 in a forward of its own, with
    weights in float32, is not known to. Raises `InvalidInput` for a model that cannot be copied.
    """
    device, asked = x.device, logits or _logits
    if not len(x) or not precision.is_reduced((*model.parameters(), *model.buffers()), device.type):
        return None
    checks.evaluation_mode(model)
    _leave(1e30, device)
    seen = [asked(model, x).float()]
    with _Leaving(device):
        seen.append(asked(model, x).float())
    with precision.float32_only(device.type):
        right = asked(_in_float32(model), x.float()).float()
    smoothed = _smoothed(model)
    scores = _softmax if smoothed is None else smoothed.voting.scores
    difference = torch.stack([(scores(one) - scores(right)).abs().max() for one in seen]).max()
    return Deviation(float((torch.stack(seen) - right).abs().max()), float(difference), float(right.abs().max()))


def refuse_beyond(
    found: Deviation, model: nn.Module, device: torch.device, guard: float | None = None, *, of_logits: bool = False
) -> None:
    """Raise `InvalidInput` for a deviation from float32 that rounding does not explain, or that exceeds the guard of
    the scores (`of_logits`: of the logits), where there is one.
    """
    measured, what = (found.logit, "logits") if of_logits else (found.score, "scores")
    remedy = "; ".join(precision.remedies((*model.parameters(), *model.buffers()), device.type)) or "network.float()"
    if not found.explained:
        raise InvalidInput(
            f"{what} computed in less than float32 differ by {measured:.2g} from float32's of the same images, logits "
            f"by {found.logit:.2g} where the largest is {found.largest:.2g}: a wrong kernel or an overflow, not "
            f"rounding, and no guard makes it safe; compute in float32: {remedy}"
        )
    if guard is not None and not measured <= guard:
        raise InvalidInput(
            f"{what} computed in less than float32 differ by {measured:.2g} from float32's of the same images; the "
            f"guard is {guard:g}: compute in float32: {remedy}; or choose a guard well above that"
        )


def _smoothed(model: nn.Module) -> SmoothedClassifier | None:
    """The model, where the logits of its ablations are what is measured."""
    found = voting_classifier(as_classifier(model))
    return found if found is model else None


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=-1)


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    smoothed = _smoothed(model)
    if smoothed is not None:
        return smoothed.logits(x)
    return model(precision.matching(model, x).clone())


def _in_float32(model: nn.Module) -> nn.Module:
    """The model itself where all weights and buffers are float32 or wider, or a copy of it that is."""
    tensors = (*model.parameters(), *model.buffers())
    if not any(t.dtype in (torch.bfloat16, torch.float16) for t in tensors):
        return model
    try:
        return copy.deepcopy(model).float()
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidInput(
            f"model computes in less than float32 and cannot be copied ({reason}), so that nothing shows whether its "
            "kernels are right; use it in float32: model.float()"
        ) from error


class _Leaving(TorchDispatchMode):
    """Within it, memory handed out for a product, a convolution or attention holds NaN. (What is left before a whole
    network is overwritten by its first layers.)
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(part in func.name() for part in _PRODUCTS):
            _leave(torch.nan, self._device)
        return func(*args, **(kwargs or {}))


def _leave(value: float, device: torch.device) -> None:
    """Leave `value` in memory that is handed out next: two blocks of each size, filled and given back."""
    held = [torch.full((size,), value, dtype=torch.bfloat16, device=device) for size in _BLOCKS for _ in range(2)]
    del held
