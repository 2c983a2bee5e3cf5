"""`robustpatch.attacks` and `robustpatch.evaluate` in a clone, where the two lie beside this package.

A wheel holds them within it (setup.py moves them there) and takes no other name: Hugging Face's `evaluate` and a user's
own attacks.py can be installed and imported next to it. In a clone, and where one is installed by `pip install -e`, the
names lead to the modules `attacks` and `evaluate` themselves: `robustpatch.attacks.judge is attacks.judge`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType

_HERE = Path(__file__).resolve().parent
_BESIDE = ("attacks", "evaluate")
IN_CLONE = not (_HERE / _BESIDE[0]).is_dir()
OURS = ("robustpatch", *(_BESIDE if IN_CLONE else ()))  # what names of this project's modules begin with
FOLDERS = (_HERE, *(_HERE.parent / name for name in OURS[1:]))  # that hold these modules


class _Beside(MetaPathFinder, Loader):
    """Imports `robustpatch.attacks.pgd` as `attacks.pgd`: one module of two names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != "robustpatch" or name.partition(".")[0] not in _BESIDE:
            return None
        for own in _BESIDE:  # both, as they import each other
            _claim(own)
        found = find_spec(name)
        if found is None:
            return None
        spec = ModuleSpec(fullname, self, origin=found.origin)
        spec.has_location = found.has_location  # for `python -m`, which asks `get_code`, too
        spec.submodule_search_locations = found.submodule_search_locations
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(spec.name.partition(".")[2])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state  # its own, which the import system has just replaced

    def get_code(self, fullname: str) -> CodeType:
        found = find_spec(fullname.partition(".")[2])
        return found.loader.get_code(found.name)  # type: ignore[union-attr]


def _claim(name: str) -> None:
    """Import the clone's package of that name, wherever the path leads. Raises `ImportError` if the name is taken."""
    file = _HERE.parent / name / "__init__.py"
    if name in sys.modules:
        taken = getattr(sys.modules[name], "__file__", None) or "elsewhere"
        if Path(taken).resolve() != file:
            raise ImportError(
                f"{name} was imported from {taken}, but robustpatch runs from a clone, which has a package of that "
                f"name; install it with pip install {_HERE.parent}, without -e, which takes no other name"
            )
        return
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


if IN_CLONE:
    sys.meta_path.insert(0, _Beside())  # before the finder of files, which would make a second module of each file
