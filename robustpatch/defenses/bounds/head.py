"""Bounds of the lead of one class over every other, taken in the last linear operator."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from robustpatch.defenses.bounds.call import Box
from robustpatch.defenses.bounds.graph import Graph, Held, Ref, pick, refs
from robustpatch.defenses.bounds.rounding import next_float, rounding, unless_overflown

aten = torch.ops.aten


class Head(NamedTuple):
    """The last operator, where that is linear: outputs are those of `before` times `weight` [F,K], plus `bias` [K]."""

    before: Graph
    weight: Ref | Held
    bias: Ref | Held | None


class First(NamedTuple):
    """The first operator, where that is linear and all that looks at the images: node `node` is the flattened images
    times `weight` [F,N], plus `bias`.
    """

    node: int
    weight: Ref | Held
    bias: Ref | Held | None


def first_of(graph: Graph) -> First | None:
    uses = [(number, ref) for number, node in enumerate(graph.nodes) for ref in refs(node.arguments)]
    current = 0
    while True:
        users = [number for number, ref in uses if ref.node == current]
        if len(users) != 1 or current == graph.output.node:
            return None
        (current,) = users
        node = graph.nodes[current]
        if node.op is aten.addmm.default:
            return First(current, node.arguments["mat2"], node.arguments["self"])
        if node.op is aten.mm.default:
            return First(current, node.arguments["mat2"], None)
        if node.op is not aten.reshape.default:
            return None


def tensor_of(own: Ref | Held, constants: dict[int, Any]) -> Tensor:
    """A constant's values, where those of nodes are `constants`."""
    if isinstance(own, Held):
        return own.tensor
    return pick(constants[own.node], own)


def head_of(graph: Graph) -> Head | None:
    node = graph.nodes[graph.output.node]
    if node.op is aten.addmm.default:
        return Head(graph.ending_at(node.arguments["mat1"]), node.arguments["mat2"], node.arguments["self"])
    if node.op is aten.mm.default:
        return Head(graph.ending_at(node.arguments["self"]), node.arguments["mat2"], None)
    return None


def of_ends(box: Box, own: Int[Tensor, " M"], *, outward: bool) -> Float[Tensor, "M K"]:
    """z_c's least minus z_j's largest, strictly below every difference: by one smallest normal number at least, as the
    next float below 0 is a subnormal one, which is 0 where those are flushed.
    """
    found = box.lower.gather(1, own[:, None]) - box.upper
    return next_float(found - torch.finfo(found.dtype).tiny, -torch.inf) if outward else found


def leads(
    linear: tuple[Tensor, Tensor | None], box: Box, own: Int[Tensor, " M"], *, outward: bool = True
) -> Float[Tensor, "M K"]:
    """Of class c = `own` and every class j, a number below z_c - z_j for all inputs of the last linear operator, of
    weight [K,F] and bias [K].

    The difference is one product, with w_c - w_j, so that what raises both classes does not count (Chiang et al. 2020,
    Section 3). `outward`: what the network computes of either class is within γ_{n+1}(|w||a| + |b|) of the exact one;
    and a subnormal w_c - w_j may be flushed to 0, so that a smallest normal number times |a| is lost.
    """
    order = own.argsort(stable=True)
    classes, counts = own[order].unique_consecutive(return_counts=True)
    ends = (end[order].split(counts.tolist()) for end in box)
    found = [_against(*linear, c, *some, outward=outward) for c, *some in zip(classes.tolist(), *ends, strict=True)]
    return torch.cat(found)[order.argsort()] if found else box.lower.new_zeros(0, len(linear[0]))


def _against(
    weight: Tensor, bias: Tensor | None, c: int, lower: Tensor, upper: Tensor, *, outward: bool
) -> Float[Tensor, "M K"]:
    middle = (lower + upper) / 2
    bias = torch.zeros_like(weight[:, 0]) if bias is None else bias
    difference = weight[c] - weight
    value = F.linear(middle, difference, bias[c] - bias)
    if not outward:
        return value - F.linear((upper - lower) / 2, difference.abs())
    radius = torch.maximum(upper - middle, middle - lower)
    rate, least = rounding(weight.shape[1] + 2, weight.dtype), torch.finfo(weight.dtype).tiny
    shift = rate * (bias[c].abs() + bias.abs()) + 32 * (weight.shape[1] + 1) * least
    lost = F.linear(radius * (1 + rate), difference.abs())
    size = weight[c].abs() + weight.abs() + 4 * least / rate
    lost = lost + F.linear(rate * (middle.abs() + radius) + 16 * least, size, shift)
    return next_float(value - unless_overflown(lost * (1 + rate), rate), -torch.inf)
