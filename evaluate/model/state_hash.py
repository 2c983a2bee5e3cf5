"""Hash what objects hold, equal in every process, and find the modules of the user's that their code is in."""

from __future__ import annotations

import functools
import io
import itertools
import pickletools
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from evaluate.model.source_files import is_own
from robustpatch.classifiers.state_digest import BY_TEXT, READ, Parts, filled
from robustpatch.clone import OURS

_OF_MODULES = {*vars(nn.Module())}  # what every module has
_NOT_OF_OURS = {"chunk", "passed", "_traced"}  # decide speed alone, or record what was tested before
_WRAPPERS = (FunctionType, MethodType, staticmethod, classmethod, property, functools.partial)
_NO_PART_OF_CODE = re.compile(r"\.debug_pkl$|/traced_inputs|/\.data/")  # files of TorchScript without effect
_MANGLED = re.compile(r"_?_?_torch_mangle_\d+\.?")  # the number counts what the process compiled before
_DESCRIPTORS = (GetSetDescriptorType, MemberDescriptorType, MethodDescriptorType, WrapperDescriptorType)


class NoFile(Exception):
    """Something is held that no file tells and no copy could be made of."""


def hash_state(held: Iterable[object], *, caches: bool = False) -> tuple[str, set[str]]:
    """Return a hash of all that the objects hold, at any depth, and the user's modules that their code is in.

    Told by value: numbers, texts, tensors, arrays, and the parts of containers, modules and other objects that a copy
    of them is given; hooks; what functions close over, their defaults, and the values that their code names in its
    module; what classes define. Functions and classes are told by their names; what the names mean, the files of the
    modules say (`evaluate.model.source_files`), or for libraries their versions. Left out unless `caches`: private
    lists, tables and sets of modules, unless named in capitals as constants are.

    Raises `NoFile`, saying what it is, for functions and classes of the user's that are in no file (typed in, made by
    `exec`), and for objects of which no copy can be made: locks, open files.
    """
    sink = io.BytesIO()
    told = _Values(sink, caches)
    try:
        with torch.no_grad():
            told.write(list(held))
    except NoFile:
        raise
    except Exception as error:  # whatever classes raise that cannot be copied
        raise NoFile((str(error).splitlines() or [type(error).__name__])[0]) from error
    return sha256(sink.getvalue()).hexdigest(), told.modules


class _Values(Parts):
    """Tells functions and classes by their names, and nothing by its address."""

    def __init__(self, sink: io.BytesIO, caches: bool) -> None:
        super().__init__(sink)
        self._caches = caches
        self._number = itertools.count()
        self.modules: set[str] = set()

    def persistent_id(self, value: Any) -> bytes | None:  # type: ignore[override]
        if type(value) is str:  # equal ones may be one object or two
            return b"str " + value.encode("utf-8", "surrogatepass")
        if type(value) in (set, frozenset):
            return " ".join([type(value).__name__, *sorted(self._alone(one) for one in value)]).encode()
        return None

    def name(self, value: FunctionType | type) -> object:
        return next(self._number), f"{value.__module__}.{value.__qualname__}"

    def same(self, value: object) -> object:
        return getattr(value, "__name__", None)

    def unseen(self, value: object) -> object:
        try:
            made = value.__reduce_ex__(4)  # what a copy is made of
        except Exception as error:  # whatever it raises that cannot be copied
            if getattr(value, "__dict__", None):
                return vars(value)
            raise NoFile((str(error).splitlines() or [repr(type(value))])[0]) from error
        return made if isinstance(made, str) else [list(one) if isinstance(one, Iterator) else one for one in made]

    def parts(self, value: Any) -> tuple[Any, ...]:
        kind = type(value)
        if isinstance(value, torch.jit.ScriptModule | torch.jit.ScriptFunction):
            return _torchscript(value.save_to_buffer(_extra_files={})), _hooks(value)
        if isinstance(value, nn.Module):
            return self._of_module(value)
        if isinstance(value, ModuleType):
            return value.__name__, is_own(value.__name__) and self._note(value.__name__, f"module {value.__name__}")
        if isinstance(value, BuiltinFunctionType) and isinstance(value.__self__, ModuleType | type | None):
            return value.__module__, value.__qualname__
        if kind.__module__.startswith("_cython"):  # a function of a library's
            return value.__module__, value.__qualname__
        if isinstance(value, np.ndarray) and value.dtype.hasobject:
            return kind, value.shape, value.ravel().tolist()
        if isinstance(value, _DESCRIPTORS):
            return value.__objclass__.__qualname__, value.__name__
        if isinstance(value, functools.cached_property):
            return (value.func,)
        if isinstance(value, functools._lru_cache_wrapper):  # a copy would be its name
            return kind, value.__wrapped__, tuple(value.cache_parameters().items())
        if isinstance(value, torch.Generator):
            return (value.get_state(),)
        if isinstance(value, Tensor) and value.is_meta:
            return value.dtype, tuple(value.shape)
        if kind.__module__.partition(".")[0] in OURS and hasattr(value, "__dict__"):
            public = {name: one for name, one in vars(value).items() if not name.startswith("_")}
            return kind, [(name, one) for name, one in public.items() if not _is_cached_property(kind, name)]
        if is_own(kind.__module__) or isinstance(value, (*READ, *BY_TEXT, Tensor)):
            return super().parts(value)
        return kind, self.unseen(value)

    def of_function(self, value: FunctionType) -> Any:
        cells = [cell.cell_contents for cell in value.__closure__ or () if filled(cell)]
        module, space, code = str(value.__globals__.get("__name__")), value.__globals__, value.__code__
        if not is_own(module):  # a decorator's, around one of the user's, or a library's own
            return [one for one in cells if isinstance(one, _WRAPPERS)], sorted(
                (name, one) for name, one in vars(value).items() if not name.startswith("_")
            )
        what = f"function {value.__qualname__} of {module}"
        file = self._note(module, what)
        if space is not vars(sys.modules[module]) or not (_is_in(code, file) or _is_generated(value)):
            raise NoFile(f"{what} is in no file")
        named = self._read(_names(code), space, set())
        return code.co_firstlineno, value.__defaults__, value.__kwdefaults__, cells, vars(value), named

    def of_class(self, kind: type) -> Any:
        if not is_own(kind.__module__):
            return {name: one for name, one in sorted(vars(kind).items()) if _is_of_user(one)}, kind.__bases__
        self._note(kind.__module__, f"class {kind.__qualname__} of {kind.__module__}")
        held = self._without_caches({name: one for name, one in vars(kind).items() if name != "_abc_impl"})
        told = {name: one for name, one in held.items() if isinstance(one, _WRAPPERS) or not name.startswith("__")}
        return kind.__bases__, type(kind), told

    def _of_module(self, value: nn.Module) -> tuple[Any, ...]:
        held = {name: one for name, one in vars(value).items() if not _is_told_elsewhere(value, name, one)}
        told = self._without_caches(held)
        code = value.code if isinstance(value, GraphModule) else None
        kind = type(value).__bases__ if code is not None else type(value)  # which is made for one graph
        return kind, told, value._parameters, value._buffers, value._modules, _hooks(value), code

    def _alone(self, value: object) -> str:
        digest, modules = hash_state([value], caches=self._caches)
        self.modules |= modules
        return digest

    def _note(self, module: str, what: str) -> str:
        """The file of the user's module, which is noted."""
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is None:
            raise NoFile(f"{what} is in no file")
        self.modules.add(module)
        return file

    def _without_caches(self, table: Mapping[str, Any]) -> dict[str, Any]:
        def may_be_one(name: str, value: Any) -> bool:
            private = name.startswith("_") and not name.isupper()
            return private and isinstance(value, list | Mapping | set) and not self._caches

        return {name: one for name, one in sorted(table.items()) if not may_be_one(name, one)}

    def _read(self, names: set[str], space: Mapping[str, Any], seen: set[int]) -> dict[str, Any]:
        """Look up the names that code uses: in its module, and in others of the user's that it names."""
        found = self._without_caches({name: space[name] for name in names if name in space})
        for name, one in found.items():
            if isinstance(one, ModuleType) and is_own(one.__name__) and id(one) not in seen:
                seen.add(id(one))
                found[name] = one, self._read(names, vars(one), seen)
        return found


def _torchscript(saved: bytes) -> list[tuple[str, str]]:
    """Hash the files of a saved TorchScript module, by name: equal wherever it was compiled. (The Python object has no
    attribute that tells modules apart.) Pickles are read as a list of instructions, and nothing is built from them.
    """
    found = []
    with zipfile.ZipFile(io.BytesIO(saved)) as files:
        for name in files.namelist():
            if _NO_PART_OF_CODE.search(name):
                continue
            content = files.read(name)
            if name.endswith(".pkl"):
                steps = [(op.name, _unmangled(str(argument))) for op, argument, _ in pickletools.genops(content)]
                content = repr([step for step in steps if step[0] != "FRAME"]).encode()
            elif name.endswith(".py"):
                content = _unmangled(content.decode()).encode()
            found.append((_unmangled(name), sha256(content).hexdigest()))
    return sorted(found)


def _unmangled(text: str) -> str:
    return _MANGLED.sub("", text)


def _hooks(value: Any) -> list[list[Any]]:
    """The hooks of a module, without the numbers that count how many the process has made."""
    held = vars(value)
    return [list(held[name].values()) for name in sorted(held) if name.endswith("_hooks") and held[name]]


def _is_cached_property(kind: type, name: str) -> bool:
    return isinstance(getattr(kind, name, None), functools.cached_property)


def _is_of_user(value: Any) -> bool:
    """Tell whether an attribute of a library's class is a function of the user's."""
    inner = value.__func__ if isinstance(value, staticmethod | classmethod) else value
    return isinstance(inner, FunctionType) and is_own(str(inner.__globals__.get("__name__")))


def _is_in(code: CodeType, file: str) -> bool:
    return code.co_filename == file or Path(code.co_filename).resolve() == Path(file).resolve()


def _is_generated(value: FunctionType) -> bool:
    """Tell whether a library wrote the function: a method of a dataclass or a named tuple, or a check of types around
    one of the user's.
    """
    origin, name = value.__code__.co_filename, value.__name__
    method = name.startswith("__") and name.endswith("__") and name != "__call__"
    return (origin == "<string>" and method) or origin.startswith(("<@beartype", "<attrs generated"))


def _names(code: CodeType) -> set[str]:
    """All names that the code, or code inside it, may look up."""
    inner = [one for one in code.co_consts if isinstance(one, CodeType)]
    return {*code.co_names, *(name for one in inner for name in _names(one))}


def _is_told_elsewhere(module: nn.Module, name: str, held: object) -> bool:
    """Tells whether the attribute `name` is of every module, is told as code, or decides no answer. A user's attribute
    of the same name is none of these.
    """
    if name == "_graph" and isinstance(module, GraphModule):
        return True
    if name == "_compiled_call_impl":  # torch's own, around what is told already
        return str(getattr(held, "__module__", "")).startswith("torch.")
    ours = (type(one).__module__.startswith("robustpatch.") for one in (module, held))
    return name in _OF_MODULES or (name in _NOT_OF_OURS and any(ours))
