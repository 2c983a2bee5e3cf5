"""The suite's check of shapes, by jaxtyping and beartype, made once for calls that are alike.

To check every call takes as long as the calls themselves. A function is checked again where an argument has another
type, shape, number or text, and in each file of tests anew: `forget`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial, wraps
from inspect import isclass
from typing import Any

import jaxtyping
import numpy as np
import torch
from torch import Tensor

check_every_call = jaxtyping.jaxtyped
_checked: dict[Any, Callable[..., Any]] = {}  # functions -> the same with checks, made when they are first called
_seen: set[Any] = set()
__name__ = "jaxtyping.once"  # so that digests of models take the wrapper below for jaxtyping's, whose place it takes


def install(modules: list[str]) -> None:
    """Have the functions and dataclasses of these modules checked that state shapes."""
    jaxtyping.jaxtyped = _check_once
    jaxtyping.install_import_hook(modules, "beartype.beartype")


def forget() -> None:
    """Check every function anew."""
    _seen.clear()


def _check_once(made: Any = None, *, typechecker: Any) -> Any:
    if made is None:
        return partial(_check_once, typechecker=typechecker)
    if isclass(made):
        if is_dataclass(made) and "__init__" in vars(made):
            made.__init__ = _check_once(made.__init__, typechecker=typechecker)
        return made
    if isinstance(made, classmethod | staticmethod):
        return type(made)(_check_once(made.__func__, typechecker=typechecker))
    if isinstance(made, property):
        return property(made.fget and _check_once(made.fget, typechecker=typechecker), made.fset, made.fdel)
    return _checked_once(made, typechecker) if _states_shapes(made) else made


def _checked_once(plain: Callable[..., Any], typechecker: Any) -> Callable[..., Any]:
    @wraps(plain)
    def call(*values: Any, **named: Any) -> Any:
        if jaxtyping.config.jaxtyping_disable or torch.compiler.is_exporting():  # then sizes are no numbers
            return plain(*values, **named)
        key = (plain, *map(_kind, values), *((name, _kind(value)) for name, value in named.items()))
        if key in _seen:
            return plain(*values, **named)
        if plain not in _checked:
            _checked[plain] = check_every_call(plain, typechecker=typechecker)
        result = _checked[plain](*values, **named)
        _seen.add(key)
        return result

    return call


def _states_shapes(function: Callable[..., Any]) -> bool:
    """Tell whether an annotation names a type of jaxtyping's."""
    space = getattr(function, "__globals__", {})
    words = {word for text in function.__annotations__.values() for word in re.findall(r"\w+", str(text))}
    return any(getattr(space.get(word), "__module__", "").startswith("jaxtyping") for word in words)


def _kind(value: Any) -> Any:
    """What the checks of a value may depend on."""
    if isinstance(value, Tensor | np.ndarray):
        return type(value), tuple(value.shape), value.dtype
    if isinstance(value, tuple | list):
        return type(value), len(value), *map(_kind, value[:4])
    return value if type(value) in (int, str, bool) else type(value)
