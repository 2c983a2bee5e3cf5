"""The graphs of a network, kept as long as nothing that can be seen from outside has changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.nn.parameter import is_lazy

from robustpatch.defenses.bounds.build import build
from robustpatch.defenses.bounds.graph import Graph, undisturbed
from robustpatch.defenses.bounds.rounding import sums_of_products
from robustpatch.errors import InvalidInput

_MOST = 8  # shapes of images whose graphs are kept
_GLOBAL = ("_global_forward_pre_hooks", "_global_forward_hooks")
_BY_VALUE = (bool, int, float, complex, str, bytes, torch.Size, torch.device)


class Traced:
    """The graph of a network for images of each shape, type and device, recorded when first asked for.

    Weights and buffers are read at every run. It is recorded anew once a module, parameter, buffer or attribute of the
    network, a hook on any of them or on all modules, or a weight's shape, type or device is another one than before.
    Until then one and the same graph is given, whatever else has changed (globals, methods replaced in a class, files,
    chance): what is bounded is what runs, be it what the network's code would do by now or not. `forget` drops it.

    Copies and pickles hold none.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._state: list[Any] = []
        self._graphs: dict[Any, Graph] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, _state: dict[str, Any]) -> None:
        self.forget()

    def of(self, network: nn.Module, x: Tensor) -> Graph:
        """The graph for images like those in `x`. Raises `InvalidInput` for a network without one, see `build`."""
        state = _state_of(network)
        if not _same(state, self._state):
            self.forget()
        key = (x.shape[1:], x.dtype, x.device)
        if key not in self._graphs:
            if len(self._graphs) >= _MOST:
                self._graphs.clear()
            values = _values(state)
            with _as_it_was(network), sums_of_products(), torch.autocast(x.device.type, enabled=False):
                graph = build(network, x)
                _check_unchanged(network, state)
            _check_unwritten(values)
            self._graphs[key], self._state = graph, state
        return self._graphs[key]


def _state_of(network: nn.Module) -> list[Any]:
    """All that its code can find in its modules without looking into objects: their attributes, hooks and tensors.

    The objects themselves are held, so that no other can take an identity over.
    """
    found: list[Any] = []
    for hooks in _GLOBAL:
        _add(found, "", getattr(global_hooks, hooks))
    for name, one in network.named_modules(remove_duplicate=False):
        if isinstance(one, torch.jit.ScriptModule):
            raise InvalidInput(f"network has TorchScript in {name or 'itself'}; give the module it was made from")
        kind = type(one)
        found += (name, one, kind, _in_class(kind, "forward"), _in_class(kind, "__call__"))
        for attribute, own in vars(one).items():
            if attribute != "training":
                _add(found, attribute, own)
    return found


def _in_class(kind: type, name: str) -> Any:
    """A method as the class or one of its bases holds it."""
    return next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)


def _add(found: list[Any], name: str, own: Any) -> None:
    """An attribute, and what it holds, if it holds things."""
    found.append(name)
    if isinstance(own, dict):
        found.append(len(own))
        values = list(own.values())
        found += own
    elif isinstance(own, list | tuple | set):
        found.append(len(own))
        values = list(own)
    else:
        values = [own]
    for value in values:
        found.append(value)
        if is_lazy(value):
            raise InvalidInput("network has lazy layers without weights; run it on images once, beforehand")
        if isinstance(value, Tensor):
            found += (value.shape, value.dtype, value.device)


def _values(state: list[Any]) -> list[tuple[Tensor, Tensor]]:
    """The tensors in it whose numbers can be read, and copies of their bits."""
    plain = [own for own in state if isinstance(own, Tensor) and own.layout is torch.strided and not own.is_meta]
    return [(own, _bits(own).clone()) for own in plain if not own.is_quantized]


@torch.no_grad()
def _bits(own: Tensor) -> Tensor:
    with undisturbed():
        return own.detach().resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8)


def _check_unwritten(before: list[tuple[Tensor, Tensor]]) -> None:
    """Refuse a network that wrote to its tensors by a way that torch does not show, such as NumPy arrays of them."""
    if not all(torch.equal(_bits(own), bits) for own, bits in before):
        raise InvalidInput(
            "network writes to a parameter, a buffer or a constant while it runs, so that it need not compute the same "
            "the next time; compute a new tensor instead"
        )


def _same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(map(_alike, one, other))


def _alike(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and isinstance(a, _BY_VALUE) and a == b)


@contextmanager
def _as_it_was(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode; afterwards all attributes of its modules are as before."""
    before = [(one, dict(vars(one)), [dict(d) for d in _tables(one)]) for one in network.modules()]
    for one, _, _ in before:
        vars(one)["training"] = False
    try:
        yield
    finally:
        for one, attributes, tables in before:
            vars(one).clear()
            vars(one).update(attributes)
            for table, old in zip(_tables(one), tables, strict=True):
                table.clear()
                table.update(old)


def _tables(module: nn.Module) -> tuple[dict[str, Any], ...]:
    return module._parameters, module._buffers, module._modules


def _check_unchanged(network: nn.Module, before: list[Any]) -> None:
    after = _state_of(network)
    if _same(before, after):
        return
    pairs = zip(before, after, strict=False)
    changed = next((place for place, (old, new) in enumerate(pairs) if not _alike(old, new)), len(before))
    names = [own for own in before[:changed] if isinstance(own, str)]
    raise InvalidInput(
        f"network changes itself while it runs (near its attribute {names[-1]}), so that it need not compute the same "
        "the next time; keep nothing in attributes"
    )
