"""Objects of the user's own, by name: mine.py:net or package.module:net."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from robustpatch.clone import FOLDERS, OURS
from robustpatch.errors import InvalidInput

_WEIGHTS = (".pt", ".pth", ".pth.tar", ".ckpt", ".bin", ".safetensors", ".onnx")


def named_object(text: str, option: str) -> Any:
    """The object NAME of "FILE.py:NAME" or "PACKAGE.MODULE:NAME"; NAME may have dots.

    The module is run, so name none that you do not trust. What it raises is not caught: its traceback says where.
    Raises `InvalidInput`, naming `option`, where there is no such file, module or object.
    """
    where, _, name = text.rpartition(":")
    if text.partition(":")[0].endswith(_WEIGHTS):
        raise InvalidInput(
            f"{option} is {text!r}, a file of weights, which names no network to run; write a function that makes the "
            "network and loads them (torch.jit.load, load_state_dict), and name it as FILE.py:NAME"
        )
    if not where or not name:
        raise InvalidInput(f"{option} is {text!r}; use FILE.py:NAME or PACKAGE.MODULE:NAME")
    found: Any = module_of(text, option)
    for part in name.split("."):
        if not hasattr(found, part):
            offered = [own for own in dir(found) if not own.startswith("_")]
            raise InvalidInput(f"{option} is {text!r}, but {where} has no {part}; it has {', '.join(offered[:12])}")
        found = getattr(found, part)
    return found


def module_of(text: str, option: str) -> Any:
    """The module of such a name, run unless it was before; `named_object` says of what is refused."""
    where = text.rpartition(":")[0]
    if where.endswith(".py"):
        named = os.path.expanduser(where)
        if not os.path.isfile(named):  # nor for a text that no file can be called, which pathlib raises for
            raise InvalidInput(
                f"{option} is {text!r}, but there is no file {where}; give a path from here, or a full one"
            )
        path = Path(named).resolve()
        known = next((m for m in list(sys.modules.values()) if getattr(m, "__file__", None) == str(path)), None)
        if known is not None:
            return known
        if (path.parent / "__init__.py").is_file():
            return _of_package(path)
        sys.path.insert(0, str(path.parent))  # for what it imports from beside itself
        spec = importlib.util.spec_from_file_location(
            path.stem if path.stem not in {*sys.modules, *OURS} else f"_{path.stem}", path
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # as an import does: a worker process finds its classes by this name
        try:
            spec.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[spec.name]
            hidden = path.parent / f"{getattr(error, 'name', None)}.py"  # ImportError says what has no such name
            if hidden.stem in OURS and hidden.is_file():
                raise InvalidInput(
                    f"{option} is {text!r}, and imports {hidden.stem}, which is a package of robustpatch's clone "
                    f"rather than {hidden}; rename that file, or pip install {FOLDERS[0].parent} without -e"
                ) from error
            raise
        return module
    if not all(where.split(".")):
        raise InvalidInput(
            f"{option} is {text!r}, but {where} is no module's name; use FILE.py:NAME or PACKAGE.MODULE:NAME"
        )
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not where.startswith(error.name):  # one that the module itself wants
            raise
        raise InvalidInput(f"{option} is {text!r}, but there is no module {error.name}; run from its folder") from error


def _of_package(path: Path) -> Any:
    """The module of a file inside a package, under its full name, by which it can import its neighbours."""
    parts, folder = [path.stem], path.parent
    while (folder / "__init__.py").is_file() and folder != folder.parent:
        parts, folder = [folder.name, *parts], folder.parent
    sys.path.insert(0, str(folder))
    found = importlib.import_module(".".join(parts))
    if getattr(found, "__file__", None) != str(path):
        raise InvalidInput(
            f"{path} is {'.'.join(parts)} of its package, but another module of that name, "
            f"{getattr(found, '__file__', None)}, comes first; rename the package"
        )
    return found
