"""The files that the user's own code is in: those of given modules and all that they import, each by its SHA-256."""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from importlib.util import find_spec, resolve_name
from pathlib import Path

from robustpatch.clone import OURS

_INSTALLED = {"site-packages", "dist-packages"}
_PYTHON = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))


def files_of(modules: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of each file that these modules of the user's own are made of, by path within their package.

    Files of theirs are: their own, those of all that they import by name, at once or in a function, and so on; and, in
    one hash for each, what else is in the packages that any of these are in. Installed packages, Python's and ours are
    not among them. Nothing is run for that: sources are parsed, files found. An import of what is found nowhere is
    passed over, as the code would fail there, or do without it.
    """
    waiting, found = list(modules), {}
    while waiting:
        name = waiting.pop()
        file = None if name in found or not is_own(name) else _file(name)
        if file is not None and not is_library(str(file)):
            found[name] = file
            waiting += _imports(file.read_bytes(), name if file.stem == "__init__" else name.rpartition(".")[0])
    hashes = {_key(name, file): sha256(file.read_bytes()).hexdigest() for name, file in found.items()}
    for top in {name.partition(".")[0] for name in found}:
        rest = sorted(set(_of_package(top)) - {file.resolve() for file in found.values()})
        if rest:
            listed = [
                (path.as_posix().rpartition(f"/{top}/")[2], sha256(path.read_bytes()).hexdigest()) for path in rest
            ]
            hashes[f"other files of {top}"] = sha256(repr(listed).encode()).hexdigest()
    return dict(sorted(hashes.items()))


def is_own(module: str | None) -> bool:
    """Return whether the module of that name is the user's: neither Python's, nor ours, nor of an installed package."""
    top = (module or "").partition(".")[0]
    if top in OURS or top in sys.stdlib_module_names:
        return False
    file = getattr(sys.modules.get(module or "") or sys.modules.get(top), "__file__", None)
    return not isinstance(file, str) or not is_library(file)  # without one: a notebook's, or made by hand


@cache
def is_library(file: str) -> bool:
    """Return whether the file is Python's or an installed package's."""

    def inside(path: Path) -> bool:
        return bool(_INSTALLED & set(path.parts)) or any(map(path.is_relative_to, _PYTHON))

    return inside(Path(file)) or inside(Path(file).resolve())


def _key(name: str, file: Path) -> str:
    if name == "__main__":
        return file.name
    return "/".join([*name.split("."), *(["__init__"] if file.stem == "__init__" else [])]) + file.suffix


@cache
def _imports(source: bytes, package: str) -> tuple[str, ...]:
    """The modules that Python source of that package may import; none of a file that is no Python."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):
        return ()
    found: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom):
            try:
                base = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
            except ImportError:
                continue
            found += [str(base), *(f"{base}.{one.name}" for one in node.names)]
    return tuple(found)


def _of_package(top: str) -> list[Path]:
    """The files of the package of that name, loaded or not; none where it is a module or has no __init__.py."""
    file = _file(top)
    return [] if file is None or file.stem != "__init__" else list(file.resolve().parent.rglob("*.py"))


def _file(name: str) -> Path | None:
    """The file of a module that is loaded, or would be."""
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
    return Path(place) if isinstance(place, str) and Path(place).is_file() else None
