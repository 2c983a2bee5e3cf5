"""Tell TorchScript modules apart by what they are saved as: the Python object has no attribute that says it."""

from __future__ import annotations

import hashlib
import io
import pickletools
import re
import zipfile

_UNTOLD = re.compile(r"\.debug_pkl$|/traced_inputs|/\.data/")  # of no effect on what is computed
_MANGLED = re.compile(r"_?_?_torch_mangle_\d+\.?")  # the number counts what the process compiled before


def archive(saved: bytes) -> list[tuple[str, str]]:
    """The files of a saved TorchScript module, by name, with a hash of what each says: equal wherever it was compiled.

    Pickles are read as a list of instructions, and nothing is built from them.
    """
    found = []
    with zipfile.ZipFile(io.BytesIO(saved)) as files:
        for name in files.namelist():
            if _UNTOLD.search(name):
                continue
            content = files.read(name)
            if name.endswith(".pkl"):
                steps = [(op.name, _plain(str(argument))) for op, argument, _ in pickletools.genops(content)]
                content = repr([step for step in steps if step[0] != "FRAME"]).encode()
            elif name.endswith(".py"):
                content = _plain(content.decode()).encode()
            found.append((_plain(name), hashlib.sha256(content).hexdigest()))
    return sorted(found)


def _plain(text: str) -> str:
    return _MANGLED.sub("", text)
