"""TorchScript files: read only where their code calls nothing that reaches beyond tensors.

`torch.jit.load` builds no Python object from the file, but it runs code of it: a module's `__setstate__`, when it is
loaded, and `forward`. That is TorchScript, which has no imports; among its operators are two that read and write files
(`aten::from_file`, `aten::save`), three that ask other machines (`rpc_*`), and those of libraries that a process has
loaded. So the text of the code is searched first.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import torch
from torch import nn

from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput
from robustpatch.intake.archive import texts

_REACHING = re.compile(r"(?<!\w)(from_file|save|load|load_tensor|_?rpc\w*|remote|record_function\w*)(?!\w)")
_OTHER_OPS = re.compile(r"(?<![\w.])ops(?!\.(?:aten|prim|quantized|mkldnn|mkldnn_prepacked|torchvision)\.)(?!\w)")
_OTHER_CLASSES = re.compile(r"torch\.classes(?!\.quantized\.)")


def load(path: Path) -> nn.Module:
    """The module of a TorchScript file, on the CPU, in evaluation mode. Raises `InvalidInput`."""
    try:
        code = texts(path, ".py")
    except ValueError as error:
        raise InvalidInput(f"model is {path}, which is not read: {error}; save it anew with torch.jit.save") from error
    for name, text in sorted(code.items()):
        for what in (_REACHING, _OTHER_OPS, _OTHER_CLASSES):
            found = what.search(text)
            if found is not None:
                raise InvalidInput(
                    f"model is {path}, TorchScript whose {name} names {one_line(found[0], 40)!r}, by which code can "
                    "reach files, other machines or other libraries; such a file is not loaded: export the network "
                    "without it, or name it as FILE.py:NAME if you trust it"
                )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nobody should write such files any more
            module = torch.jit.load(str(path), map_location="cpu")
        module.eval()
    except (RuntimeError, ValueError, AttributeError) as error:
        raise InvalidInput(
            f"model is {path}, which torch.jit.load does not read ({one_line(error, 200)}); save it anew with "
            f"torch.jit.save of PyTorch {torch.__version__}"
        ) from error
    return module
