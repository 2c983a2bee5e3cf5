"""A device that is not the CPU, on a machine that has none: a tensor made on the wrong one fails, as on a GPU.

Within `elsewhere()`, tensors on the device "elsewhere" are wrappers around tensors of the CPU, which compute what they
would there. An operator that is given tensors of both devices raises the error that it would raise on a GPU; a number
(a tensor without axes, of the CPU) may go along, as there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "elsewhere"
_MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)

_INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


class Elsewhere(Tensor):
    """A tensor whose numbers are those of `inner`, on the CPU."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
            requires_grad=inner.requires_grad,
        )
        made.inner = inner.detach()
        return made

    inner: Tensor

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})

    def tolist(self) -> Any:  # as of any other device, by the CPU
        return self.inner.tolist()

    def __getitem__(self, key: Any) -> Tensor:
        return super().__getitem__(torch.tensor(key) if isinstance(key, list) else key)

    def new_tensor(self, data: Any, *, dtype: Any = None, device: Any = None, **options: Any) -> Tensor:
        made = torch.tensor(data, dtype=self.dtype if dtype is None else dtype, **options)
        return made.to(self.device if device is None else device)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Elsewhere({self.inner!r})"


class _Making(TorchDispatchMode):
    """Sees what makes tensors from nothing, on whichever device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
    there = [one for one in given if isinstance(one, Elsewhere)]
    here = [one for one in given if not isinstance(one, Elsewhere) and one.ndim]
    if there and here and function not in _MOVES and not (function in _INDEXED and isinstance(given[0], Elsewhere)):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {function} got {NAME} and cpu")
    device = kwargs.get("device")
    to = bool(there) if device is None else torch.device(device).type == NAME
    if device is not None and to:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args, kwargs = tree_map(lambda one: one.inner if isinstance(one, Elsewhere) else one, (args, kwargs))
    found = function(*args, **kwargs)
    if function is torch.ops.aten.copy_.default or str(function).split(".")[1].endswith("_"):
        return given[0]
    return tree_map(lambda one: Elsewhere(one) if to and isinstance(one, Tensor) else one, found)


@contextmanager
def elsewhere() -> Iterator[str]:
    """The name of the device, within. It stays known to the process, so let that be one of its own."""
    if torch._C._get_privateuse1_backend_name() != NAME:
        _setup_privateuseone_for_python_backend(NAME)
        module: Any = torch.get_device_module(NAME)
        module.manual_seed_all = lambda seed: None
        module._is_in_bad_fork = lambda: False
    made = {name: getattr(torch, name) for name in ("tensor", "as_tensor")}
    try:
        for name, make in made.items():
            setattr(torch, name, partial(_moved, make))
        with _Making():
            yield f"{NAME}:0"
    finally:
        for name, make in made.items():
            setattr(torch, name, make)


def _moved(make: Any, data: Any, *, device: Any = None, **options: Any) -> Tensor:
    """What PyTorch makes of numbers by itself, without asking any mode: on the CPU first."""
    if isinstance(data, Tensor) or device is None or torch.device(device).type != NAME:
        return make(data, device=device, **options)
    return make(data, **options).to(device)
