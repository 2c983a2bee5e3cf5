"""Builds a wheel that takes one name: attacks/ and evaluate/ are packages within robustpatch there, and so imported.

In a clone, and installed by `pip install -e`, they stay where they are (robustpatch/clone.py says how they are found).
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

MOVED = ("attacks", "evaluate")


def moved(name: str) -> str:
    """What a package or module of the clone is called in the wheel."""
    return f"robustpatch.{name}" if name.partition(".")[0] in MOVED else name


def with_moved_imports(source: str) -> str:
    """The source with `from attacks.pgd import …` as `from robustpatch.attacks.pgd import …`, and no more changed."""
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and not node.level and moved(str(node.module)) != node.module:
            at, words = node.lineno - 1, f"from {node.module} "
            start = lines[at].index(words, node.col_offset)  # which is one line, by ruff's format
            lines[at] = f"{lines[at][:start]}from {moved(str(node.module))} {lines[at][start + len(words) :]}"
        elif isinstance(node, ast.Import) and any(moved(one.name) != one.name for one in node.names):
            raise ValueError(f"line {node.lineno} binds a name that the wheel has not; write it as from … import …")
    return "".join(lines)


class BuildPy(build_py):
    """Copies each module with its imports moved."""

    def build_module(self, module: str, module_file: str, package: str) -> tuple[str, bool]:
        built, copied = super().build_module(module, module_file, package)
        source = Path(module_file).read_text(encoding="utf-8")
        Path(built).write_text(with_moved_imports(source), encoding="utf-8", newline="\n")
        return built, copied


def layout(*, editable: bool) -> dict[str, Any]:
    """The packages, where they lie, and their data."""
    found = find_packages(include=["robustpatch*", "attacks*", "evaluate*"])
    return {
        "packages": found if editable else [moved(package) for package in found],
        "package_data": {"": ["*.j2", "*.css", "*.js", "*.toml", "py.typed"], "robustpatch": ["weights/*", "sample/*"]},
        # "." so that a clone is on the path as a folder: the folder beside it, of the same name, hides nothing
        "package_dir": {"": ".", **({} if editable else {moved(package): package for package in MOVED})},
    }


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildPy}, **layout(editable="editable_wheel" in sys.argv))
