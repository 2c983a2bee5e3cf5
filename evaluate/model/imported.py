"""Modules of the user's that a function imports when it is called: no name of its own module leads to them."""

from __future__ import annotations

import dis
import hashlib
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec, resolve_name
from pathlib import Path
from types import CodeType


def imported(code: CodeType, package: str, is_own: Callable[[str, str], bool]) -> list[str]:
    """Each of the user's modules that the code imports, and those these import, with the SHA-256 of its file.

    Nothing is run for that: files are found, and compiled for the names in them. What is found nowhere is left out, as
    the code would fail there, or do without it.
    """
    found: dict[str, str] = {}
    _follow(code, package, is_own, found)
    return [f"{name} {content}" for name, content in sorted(found.items())]


def _follow(code: CodeType, package: str, is_own: Callable[[str, str], bool], found: dict[str, str]) -> None:
    for name in _named(code, package):
        file = _file(name)
        if name in found or file is None or not is_own(name, str(file)):
            continue
        content = file.read_bytes()
        found[name] = hashlib.sha256(content).hexdigest()
        inside = name if file.name == "__init__.py" else name.rpartition(".")[0]
        try:
            body = compile(content, str(file), "exec")
        except (SyntaxError, ValueError):
            continue
        _follow(body, inside, is_own, found)


def _named(code: CodeType, package: str) -> Iterator[str]:
    """The modules that the code, or code inside it, may import."""
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    for number, step in enumerate(steps):
        if step.opname == "IMPORT_NAME":
            level, wanted = (before.argval for before in steps[number - 2 : number])
            name = step.argval
            if level:
                try:
                    name = resolve_name("." * level + name, package)
                except ImportError:
                    continue
            yield name
            yield from (f"{name}.{part}" for part in wanted or ())
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _named(one, package)


def _file(name: str) -> Path | None:
    """The source file of a module that is loaded, or would be."""
    place = getattr(sys.modules.get(name), "__file__", None)
    if place is None:
        top, _, rest = name.partition(".")
        try:
            spec = find_spec(top)  # of a module inside a package, it would import the package
        except (ImportError, ValueError):
            return None
        if spec is None:
            return None
        inside = [Path(folder, *rest.split(".")) for folder in spec.submodule_search_locations or () if rest]
        files = [path for one in inside for path in (one.with_suffix(".py"), one / "__init__.py")]
        place = next((str(path) for path in files if path.is_file()), None) if rest else spec.origin
    return Path(place) if place is not None and place.endswith(".py") and Path(place).is_file() else None
