"""What a model computes with, as a value that can be compared: its weights, attributes, hooks, methods and classes."""

from __future__ import annotations

import functools
import weakref
from array import array
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from operator import is_
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

from robustpatch.classifiers import bits

_EXACT = {str, bytes, bool, int, type(None), type(...), torch.dtype, torch.device, torch.layout, torch.memory_format}
_EMPTY = {dict, list, tuple, set, frozenset}
_BARE = _EMPTY | {deque, slice, range, bytearray, array, memoryview, MappingProxyType, MethodType, CellType, np.ndarray}
"""Types of Python and NumPy whose objects have no attributes of their own, and which nobody can change."""
_OF_PYTHON = {"__dict__", "__weakref__", "__doc__", "__annotations__", "__annotate__", "__annotations_cache__"}
"""What a class holds without having been given it; Python adds some of it later."""
_CHECKERS = {"jaxtyping", "beartype", "typeguard"}
"""Libraries whose functions check the types of what they hand on to the function that they wrap."""
_HEAP = 1 << 9  # Py_TPFLAGS_HEAPTYPE of a type's flags: it was made while Python ran, by a class statement for one
_MOST = 1_000_000  # objects looked at


def content(model: nn.Module, leave_out: Iterable[str] = ()) -> tuple[object, ...]:
    """Equal at two moments unless something changed, in between, that can be told from the model.

    Told by value: parameters, buffers and all other tensors and arrays (SHA-256, about 1 ms a MB), numbers, texts,
    bytes, and what containers, partial functions and objects hold of these, attributes and slots, at any depth; module
    attributes `leave_out` of the model itself. Told by identity: functions, with their code, defaults, closures and
    attributes; classes, with what they define, those they derive from and metaclasses; all else. So are hooks, global
    ones as well, and what `compile` leaves behind. What a model holds of TorchScript, or of tensors whose numbers
    cannot be read, equals nothing, itself included.

    Not told: what functions read from a module's globals, context variables, files or elsewhere; the insides of objects
    that other languages implement (generators of random numbers, iterators) and of torch's own, but for those of
    `torch.nn` and `torch.distributions`; code replaced within a function of torch or NumPy.
    """
    found = _Teller()
    skipped = set(leave_out)
    with torch.no_grad():
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
        self._slots: dict[type, tuple[tuple[MemberDescriptorType, ...], bool]] = {}

    def of(self, value: Any) -> object:
        kind = type(value)
        if kind in _EXACT:
            return kind, value
        if kind is float or kind is complex:
            return kind, repr(value)  # NaN equals itself there, and -0 is not 0
        if kind in _EMPTY and not value:
            return kind
        if kind is OrderedDict and not value and not vars(value):  # as most tables of hooks are
            return kind
        met = self._met.get(id(value))
        if met is not None:
            return met[0]
        if len(self._met) > _MOST:
            return _Unlike()
        self._met[id(value)] = len(self._met), value
        try:
            return self._told(value, kind)
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
            return _Unlike()

    def _told(self, value: Any, kind: type) -> object:
        if kind is dict:
            return dict, self._pairs(value)
        if isinstance(value, nn.Module):
            if isinstance(value, torch.jit.ScriptModule):
                return _Unlike()
            return self._with_attributes(value, kind, None)
        if isinstance(value, type):
            self._classes[id(value)] = value
            return Same(value)
        if isinstance(value, FunctionType):
            return self._function(value)
        held = self._tensor(value) if isinstance(value, Tensor) else self._held(value)
        if kind in _BARE:
            return kind, held
        if held is None and _changes_in_use(kind):
            return Same(value)
        return self._with_attributes(value, kind, held)

    def _with_attributes(self, value: Any, kind: type, held: object) -> object:
        """And what is unseen, by identity: objects of other languages, or of classes derived from theirs."""
        slots, seen = self._layout(kind)
        table = getattr(value, "__dict__", None)
        told = self.of(kind), held, None if table is None else self._pairs(table), self._filled_slots(value, slots)
        return told if seen or held is not None else (Same(value), *told)

    def _layout(self, kind: type) -> tuple[tuple[MemberDescriptorType, ...], bool]:
        """The slots of a class and of those it derives from, and whether its objects hold nothing else unseen."""
        if kind not in self._slots:
            made = [one for one in kind.__mro__ if one.__flags__ & _HEAP]
            slots = tuple(own for one in made for own in vars(one).values() if isinstance(own, MemberDescriptorType))
            tables = kind.__dictoffset__ != 0
            self._slots[kind] = slots, len(made) == len(kind.__mro__) - 1 and (tables or bool(slots))
        return self._slots[kind]

    def _filled_slots(self, value: Any, slots: tuple[MemberDescriptorType, ...]) -> object:
        found = []
        for one in slots:
            try:
                found.append((one.__name__, self.of(one.__get__(value))))
            except AttributeError:  # nothing is in it
                found.append((one.__name__, None))
        return tuple(found)

    def _held(self, value: Any) -> object:
        """What an object holds as one of Python's own types, or of NumPy's; None for others. A class that derives from
        one of those may say something else of itself, and is not asked.
        """
        match value:
            case OrderedDict():
                return self._pairs(OrderedDict.items(value))
            case dict():
                return self._pairs(dict.items(value)), self.of(getattr(value, "default_factory", None))
            case list():
                return tuple([self.of(one) for one in list.__iter__(value)])
            case tuple():
                return tuple([self.of(one) for one in tuple.__iter__(value)])
            case set():
                return frozenset([self.of(one) for one in set.__iter__(value)])
            case frozenset():
                return frozenset([self.of(one) for one in frozenset.__iter__(value)])
            case deque():
                return tuple([self.of(one) for one in deque.__iter__(value)]), value.maxlen
            case np.ndarray():
                return str(value.dtype), value.shape, bits.of_array(value.view(np.ndarray))
            case np.generic():
                return str(value.dtype), bits.of_array(np.asarray(value))
            case float():
                return float.__repr__(value)
            case complex():
                return complex.__repr__(value)
            case int():
                return int.__add__(value, 0)
            case str():
                return str.__str__(value)
            case bytes() | bytearray() | array() | memoryview():
                view = memoryview(value)
                return view.format, view.shape, view.tobytes()
            case range():
                return value.start, value.stop, value.step
            case slice():
                return self.of(value.start), self.of(value.stop), self.of(value.step)
        return self._led_to(value)

    def _led_to(self, value: Any) -> object:
        """What an object that stands for others leads to."""
        match value:
            case MappingProxyType():
                return self._pairs(value)
            case MethodType():
                return self.of(value.__self__), self.of(value.__func__)
            case BuiltinMethodType() | MethodWrapperType():
                return Same(value), self.of(value.__self__)
            case functools.partial():
                return self.of(value.func), self.of(value.args), self.of(value.keywords)
            case staticmethod() | classmethod():
                return Same(value), self.of(value.__func__)
            case property():
                return Same(value), self.of(value.fget)
            case CellType():
                return self.of(value.cell_contents) if _filled(value) else None
            case weakref.ref():
                return Same(value), self.of(value())
        return None

    def _pairs(self, table: Any) -> object:
        pairs = table.items() if isinstance(table, Mapping) else table
        of = self.of
        return tuple([(key if type(key) is str else of(key), of(value)) for key, value in pairs])

    def _function(self, value: FunctionType) -> object:
        made_by = (value.__globals__.get("__name__") or "").partition(".")[0]
        wrapped = getattr(value, "__wrapped__", None)
        if made_by in _CHECKERS and wrapped is not None:  # their signatures are large, and say nothing more
            cells = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
            held = _All([*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()])
            return Same(value), Same(value.__code__), held, self._pairs(vars(value))  # what it wraps is among these
        # `functools.wraps` gives a function the module of another.
        if _of_a_library(value.__module__) and _of_a_library(value.__globals__.get("__name__")):
            return Same(value), Same(value.__code__)
        closure = tuple([self.of(cell.cell_contents) if _filled(cell) else None for cell in value.__closure__ or ()])
        defaults = self.of(value.__defaults__), self.of(value.__kwdefaults__)
        return Same(value), Same(value.__code__), defaults, closure, self._pairs(vars(value))

    def _tensor(self, value: Tensor) -> object:
        """Shape and numbers, as they lie where they are; of a wrapper those of what it wraps."""
        told = value.dtype, tuple(value.shape), str(value.device)
        if hasattr(value, "__tensor_flatten__"):
            names, context = value.__tensor_flatten__()  # type: ignore[operator]
            return *told, self.of(context), tuple(self.of(getattr(value, name)) for name in names)
        if value.is_meta:
            return _Unlike()
        return *told, str(value.layout), bits.of_tensor(value)

    def told_of_classes(self) -> tuple[object, ...]:
        """What the classes met define, and those they derive from; not Python's own, which nobody can change."""
        told: list[object] = []
        done: set[int] = set()
        while len(done) < len(self._classes):
            for kind in [one for one in self._classes.values() if id(one) not in done]:
                done.add(id(kind))
                self._classes.update((id(base), base) for base in (*kind.__mro__, type(kind)))
                if kind.__flags__ & _HEAP:
                    told.append((Same(kind), self._of_class(kind)))
        return tuple(told)

    def _of_class(self, kind: type) -> object:
        if _of_a_library(kind.__module__):
            return _All(vars(kind).values())
        methods: list[object] = []
        others = []
        for name, value in list(vars(kind).items()):
            if isinstance(value, FunctionType) and _plain(value):
                methods += [value, value.__code__, value.__defaults__]
            elif name not in _OF_PYTHON:
                others.append((name, self.of(value)))
        return _All(methods), tuple(others)


def _plain(function: FunctionType) -> bool:
    """Whether it holds nothing that could change within."""
    if function.__closure__ is not None or function.__kwdefaults__ is not None or function.__dict__:
        return False
    return all(type(one) in _EXACT or type(one) is float for one in function.__defaults__ or ())


def _of_a_library(module: str | None) -> bool:
    """Torch's own objects change as they are used: compiled code, contexts, generators. So do those of `logging`."""
    libraries = ("torch", "numpy", "builtins", "functools", "typing", "threading", "enum", "abc", "logging")
    return (module or "").partition(".")[0] in libraries


def _changes_in_use(kind: type) -> bool:
    name = f"{kind.__module__}."
    told = name.startswith(("torch.nn.", "torch.distributions.", "numpy.", "functools."))
    return _of_a_library(kind.__module__) and not told


def _filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
