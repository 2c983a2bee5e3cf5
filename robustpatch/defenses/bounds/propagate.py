"""Bounds through a graph: what it computes of any image of a box, and by how much one class leads."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustpatch.defenses.bounds.call import Box, Step
from robustpatch.defenses.bounds.graph import Graph, Held, Ref, mapped, pick, undisturbed
from robustpatch.defenses.bounds.head import head_of, leads, of_ends, tensor_of
from robustpatch.defenses.bounds.rounding import sums_of_products
from robustpatch.defenses.bounds.rules import CHECKED, RULES


def bounds(graph: Graph, box: Box, *, outward: bool = True) -> tuple[Box, Bool[Tensor, " B"]]:
    """Ends of the graph's output over all images between `box.lower` and `box.upper` [B,C,H,W], and for which images
    they hold: False where some bound on the way is infinite or NaN. What is computed may be NaN there, whatever a later
    operator makes of its bounds.

    Without `outward`, rounding is left out, and True given: differentiable, for training.
    """
    with undisturbed(), sums_of_products():
        return _bounds(graph, {0: box}, graph.constants(), outward)


def margins(
    graph: Graph, known: dict[int, Box], own: Int[Tensor, " M"], *, outward: bool = True
) -> Float[Tensor, "M K"]:
    """Of class c = `own` and every class j, a number below z_c - z_j for all images within the boxes `known` (of node
    0, the images, or of later nodes); NaN where nothing is proved. Where the graph ends with a linear operator, the
    difference is bounded in it.
    """
    head = head_of(graph)
    with undisturbed(), sums_of_products():
        constants = graph.constants()
        if head is None:
            ends, sound = _bounds(graph, known, constants, outward)
            found = of_ends(ends, own, outward=outward)
        else:
            ends, sound = _bounds(head.before, known, constants, outward)
            weight = tensor_of(head.weight, constants).t()
            bias = None if head.bias is None else tensor_of(head.bias, constants)
            found = leads((weight, bias), ends, own, outward=outward)
        return torch.where(sound[:, None], found, torch.nan) if outward else found


def _bounds(
    graph: Graph, known: dict[int, Box], constants: dict[int, Any], outward: bool
) -> tuple[Box, Bool[Tensor, " B"]]:
    """As `bounds`, from boxes of any nodes of which all others that the output needs are computed."""
    found: dict[int, Any] = {**known, **constants}
    some = next(iter(known.values())).lower
    sound = torch.ones(len(some), dtype=torch.bool, device=some.device)
    order, spent = graph.plan(frozenset(found))

    def value_of(own: Any) -> Any:
        if isinstance(own, Ref):
            value = found[own.node]
            # A box is of the first output of an operator; only those that copy have a list of them.
            return value if isinstance(value, Box) else pick(value, own)
        return own.tensor if isinstance(own, Held) else own

    for number in order:
        node = graph.nodes[number]
        assert node.op is not None
        arguments = {name: mapped(own, value_of) for name, own in node.arguments.items()}
        found[number] = RULES[node.op].bounds(Step(node, arguments, len(some), outward))
        if outward and node.op in CHECKED:
            sound = sound & _finite(found[number])
        for old in spent.get(number, ()):
            found.pop(old, None)
    return value_of(graph.output), sound


def _finite(box: Box) -> Bool[Tensor, " B"]:
    lower, upper = (end.unsqueeze(-1).flatten(1) for end in box)  # values of one axis, too
    if lower.shape[1] == 0:
        return torch.ones(len(lower), dtype=torch.bool, device=lower.device)
    return (lower.amin(dim=1) > -torch.inf) & (upper.amax(dim=1) < torch.inf)
