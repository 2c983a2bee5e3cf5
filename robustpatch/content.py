"""What a model computes with, as a value that can be compared: its weights, attributes, hooks, methods and classes."""

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from enum import Enum
from operator import is_
from types import FunctionType, MappingProxyType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_EXACT = {str, bytes, bool, int, type(None), type(...), torch.dtype, torch.device, torch.layout, torch.memory_format}
_SEQUENCES = (list, tuple, deque, set, frozenset)
_EMPTY = {dict, OrderedDict, list, tuple, set, frozenset}
_MOST = 1_000_000  # objects looked at


def content(model: nn.Module, leave_out: Iterable[str] = ()) -> tuple[object, ...]:
    """Equal at two moments unless something changed, in between, that can be told from the model.

    Told by value: parameters, buffers and all other tensors and arrays (SHA-256, about 1 ms a MB), numbers, texts, and
    what lists, tables and plain objects hold of these, at any depth; module attributes `leave_out` of the model itself.
    Told by identity: functions, with their code, defaults and closures; classes, with their methods and attributes; all
    else. So are hooks, global ones as well, and what `compile` leaves behind. What a model holds of TorchScript, or of
    tensors whose numbers cannot be read, equals nothing, itself included. Not told: what functions read from a module's
    globals, files or elsewhere, and the insides of objects of torch and numpy that are no tensors.
    """
    found = _Teller()
    skipped = set(leave_out)
    own = tuple((name, found.of(value)) for name, value in vars(model).items() if name not in skipped)
    everywhere = vars(torch.nn.modules.module)
    hooks = tuple(found.of(value) for name, value in everywhere.items() if name.startswith("_global_"))
    found.of(type(model))
    return own, hooks, found.told_of_classes()


def content_of(value: object) -> tuple[object, ...]:
    """The same of any value by itself; of a class, what it and those that it derives from define."""
    found = _Teller()
    return found.of(value), found.told_of_classes()


class Same:
    """An object, equal to itself alone, and kept: the address of one that is gone may be given to another."""

    __slots__ = ("what",)

    def __init__(self, what: object) -> None:
        self.what = what

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.what is self.what

    def __hash__(self) -> int:
        return id(self.what)


class _All:
    """Objects in a row, each equal to itself alone: `Same` for many, made and compared quickly."""

    __slots__ = ("what",)

    def __init__(self, what: Iterable[object]) -> None:
        self.what = tuple(what)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _All) and len(self.what) == len(other.what) and all(map(is_, self.what, other.what))

    def __hash__(self) -> int:
        return len(self.what)


class _Unlike:
    """Equal to nothing."""

    def __eq__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 0


class _Teller:
    """One walk: an object that is met again is told by its number."""

    def __init__(self) -> None:
        self._met: dict[int, tuple[int, object]] = {}  # the objects too, so that none of their addresses is used again
        self._classes: dict[int, type] = {}

    def of(self, value: Any) -> object:
        if type(value) in _EXACT:
            return type(value), value
        if isinstance(value, Enum):
            return Same(value)
        if isinstance(value, float | complex | np.generic | slice | range):
            return type(value), repr(value)  # NaN equals itself there, and -0 is not 0
        if type(value) in _EMPTY and not value:  # as most tables of hooks are
            return type(value)
        if id(value) in self._met:
            return self._met[id(value)][0]
        if len(self._met) > _MOST:
            return _Unlike()
        self._met[id(value)] = len(self._met), value
        try:
            return self._told(value)
        except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError):
            return _Unlike()

    def _told(self, value: Any) -> object:
        if isinstance(value, type):
            self._classes[id(value)] = value
            return Same(value)
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, np.ndarray):
            if value.dtype.hasobject:
                return _Unlike()
            return str(value.dtype), value.shape, hashlib.sha256(np.ascontiguousarray(value).tobytes()).digest()
        if isinstance(value, dict | MappingProxyType):
            return self.of(type(value)), self._pairs(value)
        if isinstance(value, _SEQUENCES):
            parts = [self.of(one) for one in value]
            return self.of(type(value)), frozenset(parts) if isinstance(value, set | frozenset) else tuple(parts)
        if isinstance(value, MethodType):
            return "method", self.of(value.__self__), self.of(value.__func__)
        if isinstance(value, functools.partial):
            return "partial", self.of(value.func), self.of(value.args), self.of(value.keywords)
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, staticmethod | classmethod):
            return Same(value), self.of(value.__func__)
        if isinstance(value, property):
            return Same(value), self.of(value.fget)
        return self._object(value)

    def _pairs(self, table: Mapping[Any, Any]) -> object:
        return tuple((self.of(key), self.of(value)) for key, value in table.items())

    def _function(self, value: FunctionType) -> object:
        if _of_a_library(value.__module__):
            return Same(value), Same(value.__code__)
        closure = tuple(self.of(cell.cell_contents) if _filled(cell) else None for cell in value.__closure__ or ())
        defaults = self.of(value.__defaults__), self.of(value.__kwdefaults__)
        return Same(value), Same(value.__code__), defaults, closure, self._pairs(vars(value))

    def _object(self, value: Any) -> object:
        kind = type(value)
        if isinstance(value, torch.jit.ScriptModule):
            return _Unlike()
        slots = [name for one in kind.__mro__ for name in _names(vars(one).get("__slots__", ()))]
        if not isinstance(value, nn.Module) and (
            _of_a_library(kind.__module__) or not (hasattr(value, "__dict__") or slots)
        ):
            return Same(value)
        held = {name: getattr(value, name) for name in slots if hasattr(value, name) and not name.startswith("__")}
        return self.of(kind), self._pairs(getattr(value, "__dict__", {})), self._pairs(held)

    def _tensor(self, value: Tensor) -> object:
        """Kind, shape and numbers, as they lie where they are; of a wrapper those of what it wraps."""
        told = self.of(type(value)), value.dtype, tuple(value.shape), str(value.device), self.of(vars(value))
        if hasattr(value, "__tensor_flatten__"):
            names, context = value.__tensor_flatten__()  # type: ignore[operator]
            return *told, self.of(context), tuple(self.of(getattr(value, name)) for name in names)
        if value.is_meta:
            return _Unlike()
        with torch.no_grad():
            return *told, str(value.layout), *map(_digest, _dense(value.detach()))

    def told_of_classes(self) -> tuple[object, ...]:
        """What the classes met define, and those they derive from."""
        told: list[object] = []
        done: set[int] = set()
        while len(done) < len(self._classes):
            for kind in [one for one in self._classes.values() if id(one) not in done]:
                done.add(id(kind))
                self._classes.update((id(base), base) for base in kind.__mro__)
                told.append((Same(kind), self._of_class(kind)))
        return tuple(told)

    def _of_class(self, kind: type) -> object:
        if _of_a_library(kind.__module__):
            return _All(vars(kind).values())
        methods: list[object] = []
        others = []
        for name, value in list(vars(kind).items()):
            if isinstance(value, FunctionType) and value.__closure__ is None:
                methods += [value, value.__code__, value.__defaults__, value.__kwdefaults__]
            else:
                others.append((name, self._defined(name, value)))
        return _All(methods), tuple(others)

    def _defined(self, name: str, value: Any) -> object:
        if isinstance(value, FunctionType | staticmethod | classmethod | property):
            return self.of(value)
        if name.startswith("__"):  # of Python itself, which adds some of them later
            return None
        if isinstance(value, (*_EXACT, float, complex, Tensor, np.ndarray, dict, *_SEQUENCES)):  # a constant of its own
            return self.of(value)
        return Same(value)


def _of_a_library(module: str | None) -> bool:
    """Torch's own objects change as they are used: compiled code, contexts, generators."""
    return (module or "").partition(".")[0] in ("torch", "numpy", "builtins", "functools", "typing", "threading")


def _filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _names(slots: str | Iterable[str]) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _dense(value: Tensor) -> list[Tensor]:
    """Tensors that together say what this one holds."""
    if value.is_quantized:
        parts = [value.int_repr()]
        if value.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams):
            return [*parts, value.q_per_channel_scales(), value.q_per_channel_zero_points()]
        return [*parts, torch.tensor([value.q_scale(), value.q_zero_point()], dtype=torch.float64)]
    if value.layout == torch.strided:
        return [value]
    if value.layout == torch.sparse_coo:
        return [value._indices(), value._values()]
    if value.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [value.crow_indices(), value.col_indices(), value.values()]
    return [value.ccol_indices(), value.row_indices(), value.values()]


def _digest(value: Tensor) -> bytes:
    numbers = value.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return hashlib.sha256(numbers.view(torch.uint8).numpy().data).digest()
