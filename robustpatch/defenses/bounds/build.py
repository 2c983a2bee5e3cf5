"""The graph of a network for any number of images, built from the operators that it runs on two and on three."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robustpatch.defenses.bounds.call import Call
from robustpatch.defenses.bounds.graph import BATCH, Graph, Held, Meta, Node, Ref, mapped, refs
from robustpatch.defenses.bounds.record import record
from robustpatch.defenses.bounds.rules import CONSTANT, RULES, SEVERAL
from robustpatch.errors import InvalidInput

_BATCHES = (2, 3)
_SIZES = ("shape", "size")


def build(network: nn.Module, x: Tensor) -> Graph:
    """The graph of the network, as it is, in evaluation mode, for images of the shape, type and device of `x`.

    It is recorded twice, of two and of three images: a number that is 2 in the one and 3 in the other is the number of
    images, and may only stand for the length of the first axis; everything else must be the same. What the output does
    not need is left out. Then every operator that is left must have a rule, which refuses those that do not keep the
    first axis as it is. So no image's outputs depend on other images, on how many there are, or on the order of them.

    Raises `InvalidInput`, naming the operator and the module that runs it.
    """
    both = [record(network, x, batch) for batch in _BATCHES]
    (nodes, output), (others, other_output) = both
    if len(nodes) != len(others) or output != other_output:
        raise InvalidInput(_changing("network"))
    merged = Graph(tuple(_merged(one, other) for one, other in zip(nodes, others, strict=True)), output)
    graph = _marked(_without_unused(merged))
    for node in graph.nodes[1:]:
        _check(graph, node)
    last = graph.nodes[graph.output.node]
    shape = last.meta(graph.output).shape
    if not last.per_image or _is_other(graph, graph.output) or len(shape) != 2 or shape[0] is not BATCH:
        raise InvalidInput(
            f"network returns outputs of shape {shape}, or that no image matters to; [batch, classes] is needed"
        )
    return graph


def _merged(one: Node, other: Node) -> Node:
    """The two calls as one, with `BATCH` where they differ as the numbers of images do."""

    def same(first: Any, second: Any) -> Any:
        if isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
            return [same(*pair) for pair in zip(first, second, strict=True)]
        if isinstance(first, Held) and isinstance(second, Held):
            alike = first.tensor is second.tensor or _equal(first.tensor, second.tensor)
        else:
            if type(first) is type(second) is int and (first, second) == _BATCHES:
                return BATCH
            alike = type(first) is type(second) and (first is second or first == second)
        if not alike:
            raise InvalidInput(_changing(one.where))
        return first

    if one.op is not other.op or len(one.metas) != len(other.metas):
        raise InvalidInput(_changing(one.where))
    arguments = {name: same(own, other.arguments[name]) for name, own in one.arguments.items()}
    metas = tuple(
        Meta(tuple(same(own.shape, second.shape)), same(own.dtype, second.dtype))
        for own, second in zip(one.metas, other.metas, strict=True)
    )
    return replace(one, arguments=arguments, metas=metas)


def _changing(where: str) -> str:
    return (
        f"{where} does not do the same for two images as for three, or not the same every time; compute each image "
        "alone, without chance or memory"
    )


def _equal(one: Tensor, other: Tensor) -> bool:
    """True for equal constants, made anew each time."""
    alike = (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
    return alike and torch.equal(one, other)


def _without_unused(graph: Graph) -> Graph:
    """Only the images and what the output needs, numbered anew."""
    kept = sorted({0, *graph.needed(frozenset())})
    number = {old: new for new, old in enumerate(kept)}

    def moved(argument: Any) -> Any:
        return Ref(number[argument.node], argument.output) if isinstance(argument, Ref) else argument

    nodes = []
    for old in kept:
        node = graph.nodes[old]
        nodes.append(replace(node, arguments={name: mapped(own, moved) for name, own in node.arguments.items()}))
    return Graph(tuple(nodes), moved(graph.output))


def _marked(graph: Graph) -> Graph:
    """Each node with what it belongs to: images, or none."""
    nodes: list[Node] = []
    for node in graph.nodes:
        mine = not nodes or any(nodes[ref.node].per_image for ref in refs(node.arguments)) or _sized(node)
        nodes.append(replace(node, per_image=mine))
    return replace(graph, nodes=tuple(nodes))


def _sized(node: Node) -> bool:
    return any(own[:1] == [BATCH] for name, own in node.arguments.items() if name in _SIZES)


def _check(graph: Graph, node: Node) -> None:
    """Refuse the call if nothing is known of its bounds, or if it might mix images."""

    def refuse(what: str) -> None:
        raise InvalidInput(f"{node.where} runs {node.op}{what}")

    for name, own in node.arguments.items():
        if name != "end" or not node.per_image:  # of a slice of images: its rule sees to that
            rest = own[1:] if name in _SIZES and isinstance(own, list) and own[:1] == [BATCH] else own
            if _mentions_batch(rest):
                refuse(f" with {name} of the number of images; compute each image alone (for one row each: expand)")
    if not node.per_image:
        if node.op not in CONSTANT:
            refuse(
                " on parameters or constants alone, which need not give the same bits every time; compute it once, "
                "beforehand (parametrizations: torch.nn.utils.parametrize.remove_parametrizations)"
            )
        return
    if node.op not in RULES:
        refuse(", whose bounds are not known; robustpatch.defenses.bounds.rules.RULES lists those that are")
    rule = RULES[node.op].refuse
    if any(_is_other(graph, ref) for ref in refs(node.arguments)):
        refuse(" on indices or statistics, whose bounds are not known; leave them out")
    wrong = rule(Call(graph, node))
    if wrong is not None:
        refuse(f", {wrong}")
    dtype = graph.nodes[0].metas[0].dtype
    for meta in node.metas if node.op in SEVERAL else node.metas[:1]:
        if meta.shape[:1] != (BATCH,) or any(length is BATCH for length in meta.shape[1:]):
            refuse(f" with a result of shape {meta.shape}; the images must stay along the first axis, and only there")
        if meta.dtype != dtype:
            refuse(f" with a result of {meta.dtype}; keep to {dtype}, the type of the network's first parameter")


def _is_other(graph: Graph, ref: Ref) -> bool:
    """True for all but the first output of an operator that has others: indices of the largest, statistics."""
    return bool(ref.output) and graph.nodes[ref.node].op not in SEVERAL


def _mentions_batch(argument: Any) -> bool:
    if isinstance(argument, list):
        return any(_mentions_batch(one) for one in argument)
    return argument is BATCH
