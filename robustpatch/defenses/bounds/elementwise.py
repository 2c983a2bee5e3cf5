"""Operators that rise or fall with each of their inputs, in floating point as in theory: the ends give the bounds.

Rectifiers, clamps and maxima choose one of their inputs: the operator itself, of the ends, is exact. A sum, difference,
product or quotient of two numbers is one operation, rounded once: what is rounded lies between the exact results of the
ends (of all four pairs, for a product or quotient), and rounding keeps the order. So the operator itself, of the ends,
bounds what it computes in between, whatever the constant is rounded to before; that holds for a quotient computed as a
product with a rounded inverse as well. One smallest normal number more covers results that are flushed to 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustpatch.defenses.bounds.call import Box, Call, Rule, Step
from robustpatch.defenses.bounds.graph import BATCH
from robustpatch.defenses.bounds.movement import both_ends, reduced, spatial

aten = torch.ops.aten


def _aligned(call: Call) -> str | None:
    """Broadcasting aligns axes from the last: images must come first in all tensors, constants not reach that axis."""
    for images, shape in call.tensors():
        if images and len(shape) != call.ndim:
            return "of tensors with different numbers of axes; give them the same"
        if not images and len(shape) == call.ndim and shape[0] != 1:
            return "of a constant that differs along the first axis, that of images; give it length 1 there"
    return None


def _plain(call: Call) -> str | None:
    scale = call["alpha"]
    if scale is not None and scale != 1:
        return f"with alpha {scale}, so rounded twice; multiply first"
    return _aligned(call)


def _divided(call: Call) -> str | None:
    return "by what depends on images; divide by constants" if call.images("other") else _aligned(call)


def _rises(call: Call) -> str | None:
    slope = call["negative_slope"]
    if slope is not None and not slope >= 0:
        return f"with negative_slope {slope}, which is not monotone; use one of at least 0"
    return _aligned(call)


def _clamped(call: Call) -> str | None:
    if call.images("min") or call.images("max"):
        return "with limits that depend on images; use constants"
    return _aligned(call)


def _first_of_ends(step: Step) -> Box:
    """Of an operator whose first output is the values: indices come with them."""
    return Box(step.at(0)[0], step.at(1)[0])


def _flushed(step: Step, box: Box) -> Box:
    if not step.outward:
        return box
    least = torch.finfo(box.lower.dtype).tiny
    return Box(box.lower - least, box.upper + least)


def _rising(step: Step) -> Box:
    return _flushed(step, both_ends(step))


def _hull(step: Step, found: list[Tensor]) -> Box:
    lower, upper = found[0], found[0]
    for one in found[1:]:
        lower, upper = torch.minimum(lower, one), torch.maximum(upper, one)
    return _flushed(step, Box(lower, upper))


def _difference(step: Step) -> Box:
    """The first rises, the second falls."""
    first, second = step["self"], step["other"]
    ends = [step.at(self=_end(first, k), other=_end(second, 1 - k)) for k in (0, 1)]
    return _flushed(step, Box(*ends))


def _reversed_difference(step: Step) -> Box:
    """other - self, of a number."""
    return _flushed(step, Box(step.value(step["self"].upper), step.value(step["self"].lower)))


def _product(step: Step) -> Box:
    """Of all pairs of ends; a quotient by a constant, too."""
    first, second = step["self"], step["other"]
    pairs = [(i, j) for i in _sides(first) for j in _sides(second)]
    return _hull(step, [step.at(self=_end(first, i), other=_end(second, j)) for i, j in pairs])


def _sides(own: object) -> tuple[int, ...]:
    return (0, 1) if isinstance(own, Box) else (0,)


def _end(own: object, k: int) -> object:
    return own[k] if isinstance(own, Box) else own


def _negative(step: Step) -> Box:
    return Box(step.value(step["self"].upper), step.value(step["self"].lower))


def _bent(step: Step) -> Box:
    """Monotone on either side of 0, where it is 0."""
    lower, upper = step["self"]
    found = [step.value(lower), step.value(upper)]
    inside = (lower < 0) & (upper > 0)
    found.append(torch.where(inside, torch.zeros_like(lower), found[0]))
    return _hull(step, found)


def _rules(refuse: Callable[[Call], str | None], bounds: Callable[[Step], Box], *ops: object) -> dict[object, Rule]:
    return {op: Rule(refuse, bounds) for op in ops}


def _on_constant_weight(call: Call) -> str | None:
    shape = [shape for images, shape in call.tensors() if not images]
    return None if len(shape) == 1 and shape[0][:1] != (BATCH,) else "with weights that depend on images; use constants"


ELEMENTWISE = (
    _rules(_aligned, both_ends, aten.relu.default, aten.hardtanh.default, aten.maximum.default, aten.minimum.default)
    | _rules(_clamped, both_ends, aten.clamp.default, aten.clamp.Tensor)
    | _rules(_clamped, both_ends, aten.clamp_min.default, aten.clamp_max.default)
    | _rules(_clamped, both_ends, aten.clamp_min.Tensor, aten.clamp_max.Tensor)
    | _rules(reduced, both_ends, aten.amax.default, aten.amin.default)
    | _rules(spatial, _first_of_ends, aten.max_pool2d_with_indices.default, aten.adaptive_max_pool2d.default)
    | _rules(_rises, _rising, aten.leaky_relu.default)
    | _rules(_plain, _rising, aten.add.Tensor, aten.add.Scalar)
    | _rules(_plain, _difference, aten.sub.Tensor, aten.sub.Scalar)
    | _rules(_plain, _reversed_difference, aten.rsub.Scalar)
    | _rules(_aligned, _product, aten.mul.Tensor, aten.mul.Scalar)
    | _rules(_divided, _product, aten.div.Tensor, aten.div.Scalar)
    | _rules(_aligned, _negative, aten.neg.default)
    | _rules(_aligned, _bent, aten.abs.default)
    | _rules(_on_constant_weight, _bent, aten._prelu_kernel.default)
)
ARITHMETIC = {
    op
    for op, rule in ELEMENTWISE.items()
    if rule.bounds in (_rising, _difference, _reversed_difference, _product, _bent)
}
"""Operators whose results can be infinite though their inputs are not."""
