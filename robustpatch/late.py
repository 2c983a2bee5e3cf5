"""Packages whose public names are imported when they are asked for, so that importing the package takes no time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module


def from_homes(package: str, homes: Mapping[str, tuple[str, ...]]) -> Callable[[str], object]:
    """Returns the `__getattr__` of a package whose public names stand in the modules that `homes` lists them under."""
    module_of = {name: module for module, names in homes.items() for name in names}

    def __getattr__(name: str) -> object:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{module_of[name]}"), name)

    return __getattr__
