"""What code a model is: with the same weights it may be another."""

from __future__ import annotations

import functools
import hashlib
import re
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import Path
from types import (
    BuiltinFunctionType,
    BuiltinMethodType,
    CodeType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
)
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from evaluate.model.imported import imported
from evaluate.model.torchscript import archive

_OURS = ("robustpatch", "attacks", "evaluate")
_INSTALLED = {"site-packages", "dist-packages"}
_PYTHON = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
_UNTOLD = {*vars(nn.Module()), "training"}  # of a module: what every one has
_OURS_UNTOLD = {
    "chunk",
    "passed",
    "_traced",
}  # of ours: what decides speed alone, and what was tested or recorded before
_PLAIN = (str, bytes, bool, int, float, complex, type(None), type(...), torch.dtype, torch.device)
_BUILTIN = (BuiltinFunctionType, BuiltinMethodType, MethodWrapperType)
_TOLD_BY_TEXT = (
    torch.memory_format,
    torch.layout,
    range,
    slice,
    Path,
    re.Pattern,
    bytearray,
    Fraction,
    Decimal,
    datetime,
    date,
    timedelta,
    UUID,
)
_OF_MEMBERS = ("_name_", "_value_", "_sort_order_")  # of an Enum
UNTOLD = "cannot be told apart:"
_CALLED = (FunctionType, MethodType, staticmethod, classmethod, property, functools.partial)


def files_of(module: ModuleType) -> dict[str, str]:
    """The SHA-256 of the module's file and of every file imported from beside it or below, by path from there.

    Of a module in a package, from anywhere in the package. Installed packages, Python's and ours are not among them.
    """
    top = sys.modules.get(module.__name__.partition(".")[0], module)
    places = [Path(file).resolve() for file in (getattr(top, "__file__", None), module.__file__) if file]
    if not places:  # a package without a file of its own
        return {}
    folder = next(place.parent for place in places if places[-1].is_relative_to(place.parent))
    found = {}
    for name, other in list(sys.modules.items()):
        file = getattr(other, "__file__", None)
        if name == "__main__" or not isinstance(file, str) or not file.endswith(".py") or not is_own(name):
            continue
        path = Path(file).resolve()
        if path.is_relative_to(folder) and path.is_file():
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return dict(sorted(found.items()))


def code_of(*told: Any, private: bool = False) -> dict[str, str]:
    """Hashes, by name, of the classes and functions that models or attacks bring along, and one of their `values`.

    Classes and functions: those of their submodules and attributes, with bases, closures and whatever functions,
    classes and constants their own ones name; not those of installed packages, Python's and ours. They are taken as
    compiled, by the Python that runs: they are what runs, in a notebook too, and comments are no part of it. `values`:
    the kinds of all submodules, and their attributes that are numbers, texts, tensors, functions or made of these.
    Private lists, dictionaries and sets are left out of both, as caches are such, unless `private` or named in capitals
    as constants are. Equal in every process.
    """
    teller = _Teller(private)
    values = [teller.module(one) if isinstance(one, nn.Module) else teller.of(one) for one in told]
    if teller.untold:  # equal to no other run's, and to none of its own
        values.append(f"{UNTOLD} {uuid4().hex}")
        teller.code[f"{UNTOLD} {' '.join(sorted(set(teller.untold)))}"] = [uuid4().hex]
    code = {name: _hash(" ".join(sorted(set(texts)))) for name, texts in sorted(teller.code.items())}
    return {**code, "values": _hash(repr(values))}


def is_own(name: str | None) -> bool:
    """Whether the module of that name is the user's."""
    top = (name or "").partition(".")[0]
    if top in _OURS or top in sys.stdlib_module_names:
        return False
    file = getattr(sys.modules.get(name or "") or sys.modules.get(top), "__file__", None)
    return not isinstance(file, str) or not _is_library(file)  # without one: a notebook's, or made by hand


@functools.cache
def _is_library(file: str) -> bool:
    def inside(path: Path) -> bool:
        return bool(_INSTALLED & set(path.parts)) or any(map(path.is_relative_to, _PYTHON))

    return inside(Path(file)) or inside(Path(file).resolve())


def _is_own_file(name: str, file: str) -> bool:
    return is_own(name) and not _is_library(file)


class _Teller:
    """Texts of values, equal in every process; `code` gathers what the user's classes and functions are made of."""

    def __init__(self, private: bool = False) -> None:
        self._private = private
        self.code: dict[str, list[str]] = {}
        self.untold: list[str] = []  # kinds of objects whose values cannot be read
        self._told: dict[int, tuple[Any, str]] = {}  # with the value itself, so that no other is given its id
        self._within: set[int] = set()
        self._own = functools.cache(is_own)

    def _library_value(self, value: Any) -> str:
        """What a library's object holds, as it would be copied: its state and how it is made, or its attributes.

        One that says neither is noted as untold: of two such, nobody can say whether they are equal.
        """
        if isinstance(value, _TOLD_BY_TEXT):
            return repr(value)
        module = type(value).__module__.partition(".")[0]
        if module in _OURS:
            return self.of(dict(_public(_attributes(value))))
        if isinstance(value, torch.Generator):
            return self.of(value.get_state())
        if isinstance(value, np.random.Generator):
            return self.of(value.bit_generator.state)
        try:
            made = value.__reduce_ex__(4)
        except Exception:  # it cannot be copied: a lock, an open file, a generator
            made = None
        if isinstance(made, str):
            return made
        if made is None:
            held = getattr(value, "__dict__", None)
            if held:
                return self.of(dict(sorted(held.items())))
            return self._untold(value)
        parts = [self.of(part) for part in made[:3]]
        parts += [self.of(list(part)) for part in made[3:5] if part is not None]
        return ", ".join(parts)

    def _untold(self, value: Any) -> str:
        self.untold.append(f"{type(value).__module__}.{type(value).__qualname__}")
        return "untold"

    def of(self, value: Any) -> str:
        kind = type(value)
        if kind in _PLAIN:
            return f"{kind.__name__} {value!r}"
        if kind is tuple:
            return f"tuple[{', '.join(map(self.of, value))}]"
        if isinstance(value, CodeType):
            return f"{_hash(value.co_code)} {value.co_names} {value.co_freevars} {self.of(value.co_consts)}"
        if id(value) not in self._told:
            if id(value) in self._within:
                return f"within {type(value).__qualname__}"
            self._within.add(id(value))
            self._told[id(value)] = value, self._compound(value)
            self._within.remove(id(value))
        return self._told[id(value)][1]

    def module(self, model: nn.Module) -> str:
        """All but its state dict."""
        self._within.add(id(model))
        told, scripts = [], []
        for name, part in model.named_modules():
            if not any(name.startswith(f"{script}.") or not script for script in scripts):
                told.append((name, self._part(part)))
            scripts += [name] if isinstance(part, torch.jit.ScriptModule) else []
        return repr(told)

    def _compound(self, value: Any) -> str:
        if isinstance(value, Enum):
            more = {name: one for name, one in self._shown(vars(value)) if name not in _OF_MEMBERS}
            return f"{self.of(type(value))}.{value.name} {self.of(value.value)} {self.of(more)}"
        content = self._content(value)
        if content is None:
            return self._other(value)
        # A user's own kind of number, table or tensor, or attributes that were given to one.
        more = "" if not self._own(type(value).__module__) else f" {self.of(type(value))}"
        given = _public(_attributes(value)) if isinstance(value, Tensor) else self._shown(_attributes(value))
        attributes = [(name, self.of(one)) for name, one in given]
        return f"{content}{more}{attributes or ''}"

    def _content(self, value: Any) -> str | None:
        """What a plain value or a container holds; None of any other."""
        if isinstance(value, _PLAIN):
            return f"{type(value).__name__} {value!r}"
        if isinstance(value, list | tuple):
            return f"{type(value).__name__}[{', '.join(map(self.of, value))}]"
        if isinstance(value, set | frozenset):
            return f"set[{', '.join(sorted(map(self.of, value)))}]"
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
            return f"array {value.dtype} {value.shape} {_hash(value.tobytes())}"
        if isinstance(value, Mapping):
            made = f"{self.of(value.default_factory)} " if isinstance(value, defaultdict) else ""
            return f"{made}dict[{', '.join(f'{self.of(key)}: {self.of(one)}' for key, one in value.items())}]"
        return None

    def _other(self, value: Any) -> str:
        if isinstance(value, torch.jit.ScriptFunction):
            return self._script(value)
        if isinstance(value, staticmethod | classmethod | MethodType):
            return f"{type(value).__name__} {self.of(value.__func__)} {self.of(getattr(value, '__self__', None))}"
        if isinstance(value, property):
            return f"property {self.of((value.fget, value.fset))}"
        if isinstance(value, functools.partial):
            given = [(name, self.of(one)) for name, one in self._shown(_attributes(value))]
            return f"partial {self.of(type(value))} {self.of((value.func, value.args, value.keywords))} {given or ''}"
        if isinstance(value, _BUILTIN):
            bound = getattr(value, "__self__", None)
            where = getattr(value, "__module__", None)
            return f"{where}.{value.__qualname__} {'' if isinstance(bound, ModuleType) else self.of(bound)}"
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, nn.Module):
            return f"{self.module(value)} {self.of(dict(sorted(value.state_dict().items())))}"
        if hasattr(value, "__wrapped__"):  # functools.lru_cache
            return f"wrapped {self.of(value.__wrapped__)}"
        if isinstance(value, ModuleType):
            inside = self._shown(vars(value)) if self._own(value.__name__) else ()
            return f"{value.__name__} {[(name, self.of(one)) for name, one in inside]}"
        return self._object(value)

    def _part(self, part: nn.Module) -> str:
        hooks = [*part._forward_pre_hooks.values(), *part._forward_hooks.values()]
        if isinstance(part, torch.jit.ScriptModule):
            return f"{self._script(part)} {self.of(hooks)}"
        ours = any(kind.__module__.startswith("robustpatch.") for kind in type(part).__mro__)
        untold = _UNTOLD | (_OURS_UNTOLD if ours else set())
        attributes = {name: one for name, one in self._shown(vars(part)) if name not in untold}
        unsaved = {name: part._buffers[name] for name in sorted(part._non_persistent_buffers_set)}
        compiled = part.code if isinstance(part, GraphModule) else None
        saved = {**part._parameters, **part._buffers}  # their values are in the state dict, and no attribute of theirs
        given = {name: dict(_public(_attributes(one))) for name, one in saved.items() if one is not None}
        given = {name: values for name, values in given.items() if values}
        return self.of((type(part), attributes, unsaved, hooks, compiled, given))

    def _script(self, part: torch.jit.ScriptModule | torch.jit.ScriptFunction) -> str:
        """All that it would be saved as; of its own parts there is nothing more to tell."""
        try:
            return f"script {_hash(repr(archive(part.save_to_buffer(_extra_files={}))))}"
        except RuntimeError:
            return self._untold(part)

    def _function(self, value: FunctionType) -> str:
        cells = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
        name, where = value.__qualname__, value.__globals__
        if not self._own(where.get("__name__")):  # a decorator's, around one of the user's, or a library's own
            around = [self.of(one) for one in cells if isinstance(one, _CALLED)]
            return f"{value.__module__}.{name} {around} {[(key, self.of(one)) for key, one in _public(vars(value))]}"
        code = self.of(value.__code__)
        named = [self._named(key, where[key], value.__code__) for key in _names(value.__code__) if key in where]
        given = [(key, self.of(one)) for key, one in self._shown(vars(value))]
        more = [*given, *imported(value.__code__, where.get("__package__") or "", _is_own_file)]
        return self._keep(name, f"{code} {self.of((value.__defaults__, value.__kwdefaults__, cells))} {named} {more}")

    def _named(self, name: str, found: Any, user: CodeType) -> str:
        """What a function finds by a name of its module; of a module of the user's, what it may take from it."""
        if self._is_cache(name, found):
            return name
        if isinstance(found, ModuleType) and self._own(found.__name__):
            inside = vars(found)
            return repr([self._named(key, inside[key], user) for key in _names(user) if key in inside and key != name])
        return f"{name} {self.of(found)}"

    def _class(self, value: type) -> str:
        if not self._own(value.__module__):
            replaced = [(name, self.of(one)) for name, one in sorted(vars(value).items()) if self._is_replaced(one)]
            return f"{value.__module__}.{value.__qualname__}{replaced or ''}"
        inside = [
            (name, self.of(one))
            for name, one in sorted(vars(value).items())
            if isinstance(one, _CALLED) or not name.startswith("__")
            if not self._is_cache(name, one) and name != "_abc_impl"  # what `ABC` remembers of subclasses
        ]
        inside += [("metaclass", self.of(type(value)))] if self._own(type(value).__module__) else []
        return self._keep(value.__qualname__, f"{[self.of(base) for base in value.__bases__]} {inside}")

    def _is_replaced(self, found: Any) -> bool:
        """Whether what is in a library's class is a function of the user's."""
        inner = found.__func__ if isinstance(found, staticmethod | classmethod) else found
        where = inner.__globals__.get("__name__") if isinstance(inner, FunctionType) else None
        return where in sys.modules and self._own(where)

    def _object(self, value: Any) -> str:
        kind = self.of(type(value))
        if is_dataclass(value):
            return f"{kind} {[(own.name, self.of(getattr(value, own.name, None))) for own in fields(value)]}"
        if not self._own(type(value).__module__):
            return f"{kind} {self._library_value(value)}"
        held = [(name, self.of(one)) for name, one in self._shown(_attributes(value))]
        foreign = [base for base in type(value).__mro__ if base is not object and not self._own(base.__module__)]
        return f"{kind} {held} {self._inherited(value) if foreign else ''}"

    def _inherited(self, value: Any) -> str:
        """What an object of a user's own class holds in a library's: all that a copy is given but its attributes."""
        try:
            made = value.__reduce_ex__(4)
        except Exception:
            return self._untold(value)
        if isinstance(made, str):
            return made
        state = made[2] if len(made) > 2 else None
        parts = [self.of(made[1])]
        if not isinstance(state, dict) and not (isinstance(state, tuple) and len(state) == 2):
            parts.append(self.of(state))
        return ", ".join([*parts, *(self.of(list(part)) for part in made[3:5] if part is not None)])

    def _shown(self, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """What is told of attributes: all but private tables and Python's own."""
        told = ((name, one) for name, one in sorted(values.items()) if not self._is_cache(name, one))
        return ((name, one) for name, one in told if not (name.startswith("__") and name.endswith("__")))

    def _is_cache(self, name: str, value: Any) -> bool:
        """Whether it may be one: a private table, unless its name is that of a constant."""
        table = name.startswith("_") and isinstance(value, list | Mapping | set)
        return table and not self._private and not name.isupper()

    def _tensor(self, value: Tensor) -> str:
        kind = f"tensor {value.dtype} {tuple(value.shape)} {value.layout}"
        if value.is_meta:
            return kind
        if value.layout == torch.sparse_coo:
            whole = value.detach().coalesce()
            return f"{kind} {self._tensor(whole.indices())} {self._tensor(whole.values())}"
        if value.is_quantized:
            return f"{kind} {value.qscheme()} {self._tensor(value.int_repr())} {self._tensor(value.dequantize())}"
        try:
            whole = value.detach() if value.layout == torch.strided else value.detach().to_dense()
            kept = whole.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
            return f"{kind} {_hash(kept.numpy().tobytes())}"
        except RuntimeError:
            return self._untold(value)

    def _keep(self, name: str, text: str) -> str:
        """What tells this one from others of its name, where it stands."""
        self.code.setdefault(name, []).append(text)
        return f"{name} {_hash(text)}"


def _public(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((name, one) for name, one in sorted(values.items()) if not name.startswith("_"))


def _attributes(value: Any) -> dict[str, Any]:
    """What an object holds, in its dictionary and in slots."""
    found = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        for name, slot in vars(kind).items():
            if isinstance(slot, MemberDescriptorType):
                try:
                    found[name] = slot.__get__(value)
                except AttributeError:  # nothing was put there
                    continue
    return found


def _names(code: CodeType) -> list[str]:
    """All names that the code, or code inside it, may look up in its module."""
    inner = [name for one in code.co_consts if isinstance(one, CodeType) for name in _names(one)]
    return sorted({*code.co_names, *inner})


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _hash(content: str | bytes) -> str:
    given = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return hashlib.sha256(given).hexdigest()[:16]
