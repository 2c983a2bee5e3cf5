"""One call of an operator, as its rule sees it: before any run, and with bounds of its arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from robustpatch.defenses.bounds.graph import BATCH, Graph, Held, Node, Ref, invoke, mapped


class Box(NamedTuple):
    """Least and largest value of every component, [B,...]: ends that nothing leaves."""

    lower: Tensor
    upper: Tensor


class Call:
    """One call before any run: arguments by name, and shapes."""

    def __init__(self, graph: Graph, node: Node) -> None:
        self.graph, self.node, self.arguments = graph, node, node.arguments

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    def images(self, name: str) -> bool:
        """True where that argument is a tensor with a row for each image."""
        own = self[name]
        return isinstance(own, Ref) and self.graph.nodes[own.node].per_image

    def shape(self, argument: Any) -> tuple[Any, ...]:
        if isinstance(argument, Held):
            return tuple(argument.tensor.shape)
        return self.graph.nodes[argument.node].meta(argument).shape

    @property
    def ndim(self) -> int:
        """Axes of the result."""
        return len(self.node.metas[0].shape)

    def tensors(self) -> list[tuple[bool, tuple[Any, ...]]]:
        """For every tensor among the arguments: True if it has a row for each image, and its shape."""
        found: list[tuple[bool, tuple[Any, ...]]] = []

        def look(own: Any) -> Any:
            if isinstance(own, Ref | Held):
                found.append((isinstance(own, Ref) and self.graph.nodes[own.node].per_image, self.shape(own)))
            return own

        for own in self.arguments.values():
            mapped(own, look)
        return found


@dataclass(frozen=True)
class Step:
    """One call with values: a `Box` for what belongs to images, tensors and numbers otherwise. `outward`: whether
    rounding counts; without, bounds are differentiable, for training.
    """

    node: Node
    arguments: dict[str, Any]
    batch: int
    outward: bool

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    def at(self, end: int = 0, /, **replaced: Any) -> Any:
        """Calls the operator with each box replaced by its lower end, 0, or its upper one, 1."""

        def resolved(own: Any) -> Any:
            return own[end] if isinstance(own, Box) else self.batch if own is BATCH else own

        arguments = {name: _leaves(own, resolved) for name, own in (self.arguments | replaced).items()}
        assert self.node.op is not None
        return invoke(self.node.op, arguments)

    def value(self, tensor: Tensor, name: str = "self") -> Tensor:
        """The operator itself, first output, of a tensor in place of its box."""
        out = self.at(**{name: tensor})
        return out if isinstance(out, Tensor) else out[0]


def _leaves(argument: Any, change: Callable[[Any], Any]) -> Any:
    """As `mapped`, where a box is one leaf."""
    several = isinstance(argument, list | tuple) and not isinstance(argument, Box)
    return [_leaves(one, change) for one in argument] if several else change(argument)


@dataclass(frozen=True)
class Rule:
    """`refuse`: why a call has no bounds, or might mix images; None where it may pass. `bounds`: of what it gives."""

    refuse: Callable[[Call], str | None]
    bounds: Callable[[Step], Any]
