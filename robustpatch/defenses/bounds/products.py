"""Linear operators: products with constant weights, batch norm with constant statistics, means and sums of one image.

Each is given as a `Linear` of `rounding`, which bounds it in any order of summation. Its number of terms is that of the
products in a component and the roundings beyond n + 1:

- `addmm`, `mm`, `convolution`: the products of a component. Padding adds products with 0.
- averages and sums: the numbers in a window (at most; of an adaptive one, the whole image) and the division. On the
  way stands the sum, which is larger than what it is divided into: the `peak`.
- batch norm, (a - mean)·w/√(var + ε) + b in the order of either formula: at most 16 roundings of what is not larger
  than (|a| + |mean|)·|scale| + |b|. On the way stand the difference and its product with 1/√(var + ε) or with the
  scale; an underflow there costs a smallest normal number times |scale|, |w| or |a| + |mean|.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from robustpatch.defenses.bounds.call import Call, Rule, Step
from robustpatch.defenses.bounds.movement import reduced, spatial
from robustpatch.defenses.bounds.rounding import Linear, linear_bounds

aten = torch.ops.aten


def _constants(call: Call, *names: str) -> bool:
    return not any(call.images(name) for name in names)


def _matrix(call: Call) -> str | None:
    images = "mat1" if "mat1" in call.arguments else "self"
    if not call.images(images) or not _constants(call, "mat2", *(["self"] if images == "mat1" else [])):
        return "other than of images with constant weights; its bounds are not known"
    if any(call[name] not in (None, 1) for name in ("alpha", "beta")):
        return "with alpha or beta; leave them at 1"
    if images == "mat1" and len(call.shape(call["self"])) != 1:
        return "with a bias that is no vector; use one number for each output"
    return None


def _matmul(step: Step) -> Linear:
    name = "mat1" if "mat1" in step.arguments else "self"
    weight: Tensor = step["mat2"]
    offset = step["self"].abs() if name == "mat1" else 0.0
    return Linear(lambda a: step.value(a, name), lambda s: s @ weight.abs(), offset, len(weight))


def _convolved(call: Call) -> str | None:
    if not call.images("input") or not _constants(call, "weight", "bias"):
        return "other than of images with constant weights; its bounds are not known"
    axes = len(call.shape(call["weight"]))
    return None if len(call.shape(call["input"])) == axes else "without an axis of images; keep it"


def _convolution(step: Step) -> Linear:
    weight: Tensor = step["weight"]
    bias, turned = step["bias"], step["transposed"]
    each = weight.shape[0] // step["groups"] * prod(weight.shape[2:]) if turned else weight[0].numel()
    offset = 0.0 if bias is None else bias.abs().view(-1, *[1] * (weight.ndim - 2))

    def magnitude(s: Tensor) -> Tensor:
        return step.at(input=s, weight=weight.abs(), bias=None)

    return Linear(lambda a: step.value(a, "input"), magnitude, offset, each)


def _normed(call: Call) -> str | None:
    if call["training"]:
        return "with the statistics of the batch, which mix images; call eval() and let it track running statistics"
    if not call.images("input") or not _constants(call, "weight", "bias", "running_mean", "running_var"):
        return "other than of images with constant statistics; its bounds are not known"
    return (
        None if call["running_mean"] is not None and call["running_var"] is not None else "without running statistics"
    )


def _norm(step: Step) -> Linear:
    mean, var, weight, bias = (step[name] for name in ("running_mean", "running_var", "weight", "bias"))
    spread = (-1, *[1] * (step["input"].lower.ndim - 2))
    inverse = torch.rsqrt(var + step["eps"])
    weight = torch.ones_like(mean) if weight is None else weight
    scale = inverse * weight
    offset = (scale * mean).abs() + (0.0 if bias is None else bias.abs())
    size = torch.maximum(inverse, scale.abs()).clamp(min=1)

    def least(s: Tensor) -> Tensor:
        slack = 16 * torch.finfo(s.dtype).tiny
        return slack * (s + (mean.abs() + scale.abs() + weight.abs()).view(spread))

    return Linear(
        lambda a: step.value(a, "input"),
        lambda s: s * scale.abs().view(spread),
        offset.view(spread),
        16,
        peak=lambda s: (s + mean.abs().view(spread)) * size.view(spread),
        least=least,
    )


def _window(step: Step) -> Linear:
    """A window's numbers, summed up and divided: by their number, or by what is given."""
    height, width = step["self"].lower.shape[-2:]
    divisor = step["divisor_override"] or 1
    count = height * width if "output_size" in step.arguments else prod(_pair(step["kernel_size"]))
    size = float(max(count, abs(divisor)))
    return Linear(step.value, lambda s: step.value(s).abs(), 0.0, count + 1, peak=lambda s: step.value(s).abs() * size)


def _pair(size: Any) -> list[int]:
    return size if len(size) == 2 else [*size, *size]


def _mean(step: Step) -> Linear:
    shape = step["self"].lower.shape
    count = prod(shape[dim] for dim in step["dim"])
    return Linear(step.value, step.value, 0.0, count + 1, peak=lambda s: step.value(s) * float(count))


def _sum(step: Step) -> Linear:
    shape = step["self"].lower.shape
    return Linear(step.value, step.value, 0.0, prod(shape[dim] for dim in step["dim"]))


def _rule(refuse: Any, linear: Any, name: str) -> Rule:
    return Rule(refuse, lambda step: linear_bounds(linear(step), step[name], outward=step.outward))


PRODUCTS = {
    aten.addmm.default: _rule(_matrix, _matmul, "mat1"),
    aten.mm.default: _rule(_matrix, _matmul, "self"),
    aten.convolution.default: _rule(_convolved, _convolution, "input"),
    aten.native_batch_norm.default: _rule(_normed, _norm, "input"),
    aten._native_batch_norm_legit_no_training.default: _rule(_normed, _norm, "input"),
    aten.avg_pool2d.default: _rule(spatial, _window, "self"),
    aten._adaptive_avg_pool2d.default: _rule(spatial, _window, "self"),
    aten.mean.dim: _rule(reduced, _mean, "self"),
    aten.sum.dim_IntList: _rule(reduced, _sum, "self"),
}
