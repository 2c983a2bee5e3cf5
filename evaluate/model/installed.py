"""What runs besides the model's own code: this package's, line by line, and others', by version."""

from __future__ import annotations

import sys
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

import torch

import attacks
import evaluate
import robustpatch
from evaluate.model.fingerprint import is_own

_OURS = (robustpatch, attacks, evaluate)
_ALWAYS = ("numpy", "torch")


@cache
def package_code() -> str:
    """A hash of every line of ours: under one version, in a working copy, it may change."""
    digest = sha256()
    for package in _OURS:
        folder = Path(str(package.__file__)).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def packages(*told: Any) -> dict[str, str]:
    """The versions of PyTorch, NumPy and the installed packages that classes of the models, of their submodules and of
    the attacks come from, with bases.
    """
    parts = [part for one in told for part in (one.modules() if isinstance(one, torch.nn.Module) else (one,))]
    names = {kind.__module__ for part in parts for kind in type(part).__mro__}
    ours = {*sys.stdlib_module_names, *(package.__name__ for package in _OURS), *_ALWAYS}
    tops = {name.partition(".")[0] for name in names if not is_own(name)} - ours
    where = packages_distributions() if tops else {}
    found = {*_ALWAYS, *(one for top in tops for one in where.get(top, ()))}
    return {name: _version(name) for name in sorted(found)}


def _version(name: str) -> str:
    try:
        return version(name).partition("+")[0]  # +cpu and +cu128 are of one version
    except PackageNotFoundError:
        return "unknown"
