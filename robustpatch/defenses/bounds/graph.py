"""The operators that a network runs on a batch of images, one after the other: a value that can be run and bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import _disable_current_modes


class _Batch:
    """Stands in shapes and sizes for the number of images."""

    def __repr__(self) -> str:
        return "batch"


BATCH = _Batch()


@dataclass(frozen=True)
class Ref:
    """The output of an earlier node; `output` says which of several, None where there is but one."""

    node: int
    output: int | None = None


@dataclass(frozen=True, eq=False)
class Held:
    """A tensor that was there before: a parameter, a buffer, a constant. Its values are read at every run."""

    tensor: Tensor


@dataclass(frozen=True)
class Meta:
    """Shape, with `BATCH` for the number of images, and type of one output."""

    shape: tuple[Any, ...]
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Node:
    """One call: an operator, all of its arguments by the names of its schema (`Ref` and `Held` for tensors, `BATCH` for
    the number of images), the module that made it, and what comes out. `per_image`: whether the value belongs to
    images, one row each; otherwise it is the same whatever the images are. Node 0 is the images, without an operator.
    """

    op: OpOverload | None
    arguments: dict[str, Any]
    where: str
    metas: tuple[Meta, ...]
    per_image: bool = True

    def meta(self, ref: Ref) -> Meta:
        return self.metas[ref.output or 0]


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in the order in which they run, and the one whose value, [batch, classes], is the network's output.

    Every node works on each image alone: no row of a per-image value depends on another row (`build` sees to it).
    """

    nodes: tuple[Node, ...]
    output: Ref

    def __call__(self, x: Tensor) -> Tensor:
        """The output of the images, each operator as recorded, with gradients. Nothing is written to `x`."""
        with undisturbed():
            values: dict[int, Any] = {0: x}
            order, spent = self.plan(frozenset((0,)))
            for number in order:
                values[number] = call(self.nodes[number], values, len(x))
                for old in spent.get(number, ()):
                    del values[old]
            return pick(values[self.output.node], self.output)

    def constants(self) -> dict[int, Any]:
        """The values of the nodes that do not depend on images, by number."""
        values: dict[int, Any] = {}
        for number, node in enumerate(self.nodes):
            if not node.per_image:
                values[number] = call(node, values, 0)
        return values

    @cached_property
    def _plans(self) -> dict[frozenset[int], tuple[list[int], dict[int, list[int]]]]:
        return {}

    @cached_property
    def _parts(self) -> dict[Ref, Graph]:
        return {}

    def ending_at(self, ref: Ref) -> Graph:
        """The same nodes, with another output."""
        return self._parts.setdefault(ref, Graph(self.nodes, ref))

    def plan(self, known: frozenset[int]) -> tuple[list[int], dict[int, list[int]]]:
        """Lists the nodes to compute for the output, in order, where those in `known` are; and after which of them
        which values, of all of these, are no longer needed.
        """
        if known not in self._plans:
            order = self.needed(known)
            last = {ref.node: number for number in order for ref in refs(self.nodes[number].arguments)}
            spent: dict[int, list[int]] = {}
            for old, number in last.items():
                if old != self.output.node:
                    spent.setdefault(number, []).append(old)
            self._plans[known] = (order, spent)
        return self._plans[known]

    def needed(self, known: frozenset[int]) -> list[int]:
        """The numbers of the nodes to compute for the output, in order, where those in `known` need not be."""
        found, open_nodes = set(known), [self.output.node]
        while open_nodes:
            number = open_nodes.pop()
            if number not in found:
                found.add(number)
                open_nodes += [ref.node for ref in refs(self.nodes[number].arguments)]
        return sorted(found - known)


def refs(arguments: Any) -> Iterator[Ref]:
    """Every `Ref` in an argument, or in a list or dict of them."""
    if isinstance(arguments, Ref):
        yield arguments
    elif isinstance(arguments, dict):
        yield from refs(list(arguments.values()))
    elif isinstance(arguments, list | tuple):
        for one in arguments:
            yield from refs(one)


def mapped(argument: Any, change: Callable[[Any], Any]) -> Any:
    """`change` of every leaf of nested lists; they come back as lists."""
    if isinstance(argument, list | tuple):
        return [mapped(one, change) for one in argument]
    return change(argument)


def call(node: Node, values: dict[int, Any], batch: int) -> Any:
    """Calls the node's operator on the values of earlier nodes, for so many images."""

    def resolved(argument: Any) -> Any:
        if isinstance(argument, Ref):
            return pick(values[argument.node], argument)
        if isinstance(argument, Held):
            return argument.tensor
        return batch if argument is BATCH else argument

    assert node.op is not None
    return invoke(node.op, {name: mapped(own, resolved) for name, own in node.arguments.items()})


def invoke(op: OpOverload, arguments: dict[str, Any]) -> Any:
    """The operator with all of its arguments given by name."""
    schema = op._schema.arguments
    positional = [arguments[one.name] for one in schema if not one.kwarg_only]
    return op(*positional, **{one.name: arguments[one.name] for one in schema if one.kwarg_only})


def pick(value: Any, ref: Ref) -> Any:
    """Picks one of an operator's outputs: tensors, or bounds of them."""
    return value if ref.output is None else value[ref.output]


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within it no `TorchFunctionMode`, `TorchDispatchMode` or `__torch_function__` replaces what torch computes."""
    modes = _disable_current_modes() if torch._C._len_torch_dispatch_stack() else nullcontext()
    with torch._C.DisableTorchFunction(), modes:
        yield
