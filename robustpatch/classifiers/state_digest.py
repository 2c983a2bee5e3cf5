"""A digest of all that a model holds, to tell within one process whether it has changed since.

Weights, attributes, hooks, methods and classes count. Python's own pickler goes through what is held, and this module
says how each object is to be taken apart, so that no class can hide anything. What it writes is compared, never read.
"""

from __future__ import annotations

import functools
import io
import pickle
import weakref
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from hashlib import sha256
from types import (
    BuiltinMethodType,
    CellType,
    FunctionType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    MethodWrapperType,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

BY_TEXT = (torch.dtype, torch.device, torch.layout, torch.memory_format, type(...))
_OF_PYTHON = {"__dict__", "__weakref__", "__doc__", "__annotations__", "__annotate__", "__annotations_cache__"}
"""Attributes that Python itself adds to a class, some of them later."""
_CHECKERS = {"jaxtyping", "beartype", "typeguard"}
"""Libraries whose functions check the types of what they hand on to the function that they wrap."""
_HEAP = 1 << 9  # Py_TPFLAGS_HEAPTYPE of a type's flags: it was made while Python ran, by a class statement for one


class Digest:
    """The state of an object at one moment. Equal to a later one if nothing that is compared has changed in between."""

    def __init__(self, digest: bytes | None, kept: list[object]) -> None:
        self._digest = digest  # None: equal to nothing
        self._kept = kept  # what is compared by its address, so that no other object can take that over

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Digest) and self._digest is not None and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)


def digest(model: nn.Module, leave_out: Iterable[str] = ()) -> Digest:
    """Return the state of the model: equal at two moments unless something that is compared changed between them.

    Compared by value: parameters, buffers and all other tensors and arrays (SHA-256, about 1 ms a MB), numbers, texts,
    bytes, and what containers, partial functions and objects hold of these, attributes and slots, at any depth.
    Compared by identity: functions, with their code, defaults, closures and attributes; classes, with what they define,
    those they derive from and metaclasses; all else. Hooks count, global ones as well, and what `compile` leaves
    behind. A model that holds TorchScript, or tensors whose numbers cannot be read, equals nothing, itself included.

    Not compared: attributes `leave_out` of the model itself; what functions read from a module's globals, context
    variables, files or elsewhere; the insides of objects that other languages implement (generators of random numbers,
    iterators) and of torch's own, but for those of `torch.nn` and `torch.distributions`; code replaced within a
    function of torch or NumPy.
    """
    skipped = set(leave_out)
    own = {name: value for name, value in vars(model).items() if name not in skipped}
    everywhere = vars(nn.modules.module)
    return digest_of([own, type(model), [value for name, value in everywhere.items() if name.startswith("_global_")]])


def digest_of(value: object) -> Digest:
    """Return the same of any value by itself; of a class, of what it and those that it derives from define."""
    sink = io.BytesIO()
    parts = Parts(sink)
    try:
        with torch.no_grad():
            parts.write(value)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, pickle.PicklingError):
        return Digest(None, [])
    return Digest(sha256(sink.getbuffer()).digest(), parts.kept)


def holds(*_: object) -> None:
    """Marks, in the pickle, the parts of an object."""


class Parts(pickle.Pickler):
    """Takes objects apart, but for Python's own containers; functions and classes come last, each once."""

    def __init__(self, sink: io.BytesIO) -> None:
        super().__init__(sink, protocol=5)
        self.kept: list[object] = []
        self._waiting: list[FunctionType | type] = []
        self._slots: dict[type, tuple[tuple[MemberDescriptorType, ...], bool]] = {}

    def write(self, value: object) -> None:
        """Write the value, and then what all functions and classes hold that it leads to."""
        self.dump(value)
        for one in self._waiting:  # which grows
            self.dump(self.of_class(one) if isinstance(one, type) else self.of_function(one))

    def reducer_override(self, value: Any) -> Any:
        if value is holds:
            return "holds"
        if isinstance(value, FunctionType | type):
            self._waiting.append(value)
            return holds, (self.name(value),)
        return holds, self.parts(value)

    def name(self, value: FunctionType | type) -> object:
        """Return what stands for a function or a class where it is held."""
        return self.same(value)

    def same(self, value: object) -> object:
        """Return what tells this object from all others."""
        self.kept.append(value)
        return id(value)

    def unseen(self, value: object) -> object:
        """Return what stands for an object into which nobody can look."""
        return self.same(value)

    def parts(self, value: Any) -> tuple[Any, ...]:
        """Return what the object holds: as a type of Python, NumPy or torch, as attributes and in slots."""
        kind = type(value)
        if isinstance(value, nn.Module):
            if isinstance(value, torch.jit.ScriptModule):
                raise TypeError("TorchScript cannot be compared")
            return kind, vars(value), self._filled_slots(value)
        if isinstance(value, BY_TEXT):
            return (repr(value),)
        if isinstance(value, Tensor):
            held = _of_tensor(value)
        else:
            read = next((READ[base] for base in kind.__mro__ if base in READ), None)
            held = None if read is None else (read(value),)
            if held is None and _changes_in_use(kind):
                return (self.unseen(value),)
            if isinstance(value, BuiltinMethodType | MethodWrapperType | property | weakref.ref | staticmethod):
                held = held, self.same(value)
        seen = held is not None or self._layout(kind)[1]
        attributes = getattr(value, "__dict__", None)
        return kind, held, attributes, self._filled_slots(value), None if seen else self.unseen(value)

    def of_function(self, value: FunctionType) -> Any:
        """Return what a function holds besides its name."""
        made_by = (value.__globals__.get("__name__") or "").partition(".")[0]
        cells = [cell.cell_contents if filled(cell) else None for cell in value.__closure__ or ()]
        code = self.same(value.__code__)
        if made_by in _CHECKERS and hasattr(value, "__wrapped__"):
            # Their signatures are large, and say nothing more; what it wraps is among its attributes.
            held = [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
            return code, [self.same(one) for one in held], vars(value)
        # `functools.wraps` gives a function the module of another.
        if _of_a_library(value.__module__) and _of_a_library(value.__globals__.get("__name__")):
            return code
        return code, value.__defaults__, value.__kwdefaults__, cells, vars(value)

    def of_class(self, kind: type) -> Any:
        """Return what a class defines, and those it derives from; not Python's own, which nobody can change."""
        if not kind.__flags__ & _HEAP:
            return None
        if _of_a_library(kind.__module__):
            return [self.same(one) for one in vars(kind).values()], kind.__mro__, type(kind)
        return {name: one for name, one in vars(kind).items() if name not in _OF_PYTHON}, kind.__mro__, type(kind)

    def _layout(self, kind: type) -> tuple[tuple[MemberDescriptorType, ...], bool]:
        """The slots of a class and of those it derives from, and whether its objects hold nothing else unseen: what
        other languages implement, and classes derived from theirs.
        """
        if kind not in self._slots:
            made = [one for one in kind.__mro__ if one.__flags__ & _HEAP]
            slots = tuple(own for one in made for own in vars(one).values() if isinstance(own, MemberDescriptorType))
            tables = kind.__dictoffset__ != 0
            self._slots[kind] = slots, len(made) == len(kind.__mro__) - 1 and (tables or bool(slots))
        return self._slots[kind]

    def _filled_slots(self, value: Any) -> list[tuple[str, object]]:
        found = []
        for one in self._layout(type(value))[0]:
            try:
                found.append((one.__name__, one.__get__(value)))
            except AttributeError:  # nothing is in it
                continue
        return found


def _bytes(value: Any) -> object:
    view = memoryview(value)
    return view.format, view.shape, view.tobytes()


READ: dict[type, Callable[[Any], object]] = {
    # What an object holds as one of Python's own types, or of NumPy's. A class that derives from one of those may say
    # something else of itself, and is not asked.
    OrderedDict: lambda value: list(OrderedDict.items(value)),
    dict: lambda value: (list(dict.items(value)), getattr(value, "default_factory", None)),
    **{kind: lambda value, kind=kind: list(kind.__iter__(value)) for kind in (list, tuple, set, frozenset)},
    deque: lambda value: (list(deque.__iter__(value)), value.maxlen),
    np.ndarray: lambda value: (str(value.dtype), value.shape, bits_of_array(value.view(np.ndarray))),
    np.generic: lambda value: (str(value.dtype), bits_of_array(np.asarray(value))),
    float: float.__repr__,
    complex: complex.__repr__,
    int: lambda value: int.__add__(value, 0),
    str: str.__str__,
    **dict.fromkeys((bytes, bytearray, array, memoryview), _bytes),
    **dict.fromkeys((range, slice), lambda value: (value.start, value.stop, value.step)),
    MappingProxyType: lambda value: list(value.items()),
    MethodType: lambda value: (value.__self__, value.__func__),
    **dict.fromkeys((BuiltinMethodType, MethodWrapperType), lambda value: value.__self__),
    functools.partial: lambda value: (value.func, value.args, value.keywords),
    **dict.fromkeys((staticmethod, classmethod), lambda value: value.__func__),
    property: lambda value: (value.fget, value.fset),
    CellType: lambda value: value.cell_contents if filled(value) else None,
    weakref.ref: lambda value: value(),
}


def bits_of_array(value: np.ndarray) -> bytes:
    """SHA-256 of the numbers in row-major order. Raises `ValueError` for an array of objects, which has none."""
    if value.dtype.hasobject:
        raise ValueError("array holds objects, which have no bits of their own; use numbers")
    return sha256(np.ascontiguousarray(value).tobytes()).digest()


def bits_of_tensor(value: Tensor) -> tuple[bytes, ...]:
    """SHA-256 of each of the dense tensors that together say what this one holds."""
    return tuple(_digest(part) for part in _dense(value.detach()))


def _digest(value: Tensor) -> bytes:
    numbers = value.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return sha256(numbers.view(torch.uint8).numpy().data).digest()


def _dense(value: Tensor) -> list[Tensor]:
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


def _of_tensor(value: Tensor) -> tuple[Any, ...]:
    """Shape and numbers, as they lie where they are; of a wrapper those of what it wraps."""
    told = value.dtype, tuple(value.shape), str(value.device)
    if hasattr(value, "__tensor_flatten__"):
        names, context = value.__tensor_flatten__()  # type: ignore[operator]
        return *told, context, tuple(getattr(value, name) for name in names)
    if value.is_meta:
        raise ValueError("a tensor without numbers cannot be compared")
    return *told, str(value.layout), bits_of_tensor(value)


def filled(cell: Any) -> bool:
    """Return whether a closure's cell holds anything."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _of_a_library(module: str | None) -> bool:
    """Torch's own objects change as they are used: compiled code, contexts, generators. So do those of `logging`."""
    libraries = ("torch", "numpy", "builtins", "functools", "typing", "threading", "enum", "abc", "logging")
    return (module or "").partition(".")[0] in libraries


def _changes_in_use(kind: type) -> bool:
    name = f"{kind.__module__}."
    told = name.startswith(("torch.nn.", "torch.distributions.", "numpy.", "functools."))
    return _of_a_library(kind.__module__) and not told
