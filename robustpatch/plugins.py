"""Attacks, defenses, datasets, shapes and networks of other installed packages, found by their entry points.

A package names them in its pyproject.toml, `[project.entry-points."robustpatch.attacks"]` and `name = "module:object"`;
then options, recipes and boards know the name. `examples/plugin` has one of each kind. Only what somebody installed is
found; nothing that a file says adds to it.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput

KINDS = ("attacks", "defenses", "datasets", "shapes", "networks")


def plugin_names(kind: str) -> list[str]:
    """The names of a kind, of `KINDS`, in order."""
    return sorted(_found(kind))


def load_plugin(kind: str, name: str) -> Any | None:
    """The object that an installed package calls by `name`, imported now; None where none does.

    Raises `InvalidInput` where two packages share the name, and where the import fails.
    """
    points = _found(kind).get(name, [])
    if not points:
        return None
    packages = [point.dist.name if point.dist else "?" for point in points]
    if len(points) > 1:
        raise InvalidInput(
            f"{kind} have the name {name} from {' and '.join(packages)}; uninstall one of these packages"
        )
    try:
        return points[0].load()
    except Exception as error:
        raise InvalidInput(
            f"{kind} have the name {name} from the package {packages[0]}, which cannot be imported "
            f"({type(error).__name__}: {one_line(error, 200)}); mend or uninstall it"
        ) from error


@cache
def _found(kind: str) -> dict[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=f"robustpatch.{kind}"):
        others = found.setdefault(point.name, [])
        if point.value not in [other.value for other in others]:  # a package may lie on the path twice
            others.append(point)
    return found
