"""Files of `torch.export`: read only after all that could run code has been checked or left out.

`torch.export.load` unpickles sample inputs, looks up what a node calls in `torch` by name (`torch.os.system` too),
evaluates expressions of sizes as Python, and loads compiled libraries. So the archive is written anew in memory:
tensors as they are, no sample inputs, guards, names of source files, extra files or libraries; every operator from
`torch.ops.aten` and few others, every name an identifier, every expression one of sums and products.
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput
from robustpatch.intake.archive import MOST_TEXT, name_in
from robustpatch.intake.preprocessing import InBatches, Preprocessing
from robustpatch.storage.bounded_json import read_object

_TENSORS = re.compile(r"data/(weights/weight_\d+|constants/tensor_\d+)")
_KEPT = ("archive_format", "archive_version", "byteorder", ".data/version")
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_MODEL, _SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
_OPERATORS = re.compile(
    r"torch\.ops\.(?:aten\.(?!from_file|save)|quantized_decomposed\.|torchvision\.)\w+\.\w+"
    r"|_operator\.(?:getitem|add|sub|mul|neg|floordiv|truediv|mod|pow|eq|ne|lt|le|gt|ge|and_|or_)"
    r"|torch\.sym_(?:int|float|max|min|not|sqrt)|math\.(?:ceil|floor|trunc|sqrt)"
)
_NAME = re.compile(r"[\w.:+\- ]*")
_EXPRESSION = re.compile(r"[\w\s+\-*/(),=']*")
_WORD = re.compile(r"[A-Za-z_]\w*")
_WORDS = re.compile(
    r"[suz]\d+|Symbol|Integer|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|True|False|positive|integer"
    r"|nonnegative|nonzero|real|evaluate"
)
_CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict"}


class _NotRead(ValueError):
    """Something in the file that is not run."""


def load(path: Path) -> tuple[nn.Module, Preprocessing]:
    """The network of a file that `torch.export.save` wrote, in evaluation mode, and the images it takes. Where it was
    exported for a number of images, it is asked with so many. Raises `InvalidInput`.
    """
    try:
        clean = _cleaned(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file without sample inputs
            program = torch.export.load(clean)
        module = program.module(check_guards=False)
    except _NotRead as refusal:
        raise InvalidInput(
            f"model is {path}, which holds {refusal}; such a file is not loaded: export the network without it, or "
            "name it as FILE.py:NAME if you trust it"
        ) from refusal
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, AssertionError, zipfile.BadZipFile) as error:
        raise InvalidInput(
            f"model is {path}, which torch.export.load does not read ({one_line(error, 200)}); save it anew with "
            f"torch.export.save of PyTorch {torch.__version__}"
        ) from error
    batch, channels, size = _input(program, path)
    for name in ("train", "eval", "validate_inputs", "shape_env", "range_constraints"):
        module.__dict__.pop(name, None)  # methods that refuse, and what cannot be copied
    for name, hooks in vars(module).items():
        if name.startswith("_forward") and hooks:
            hooks.clear()
    module.eval()
    network = module if batch is None else InBatches(module, batch).eval()
    return network, Preprocessing(size=size, channels=channels, source="the file says no more")


def _input(program: torch.export.ExportedProgram, path: Path) -> tuple[int | None, int | None, tuple[int, int] | None]:
    """The number of images, channels and the size that the program takes; None where any will do."""
    names = program.graph_signature.user_inputs
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    shape = tuple(nodes[0].meta["val"].shape) if len(nodes) == 1 and "val" in nodes[0].meta else ()
    if len(shape) != 4:
        raise InvalidInput(
            f"model is {path}, which takes {len(names)} inputs{f' of {len(shape)} axes' if shape else ''}; export a "
            "network of one input, images [B,C,H,W]"
        )
    batch, channels, height, width = (one if type(one) is int else None for one in shape)
    return batch, channels, None if height is None or width is None else (height, width)


def _cleaned(path: Path) -> io.BytesIO:
    """The same program without anything that is not checked here."""
    with zipfile.ZipFile(path) as archive:
        names = {name_in(info.filename): info for info in archive.infolist()}
        if _MODEL not in names or len(names) < len(archive.infolist()):
            raise ValueError("it has no models/model.json, as files of torch.export.save have")
        texts = {name: _object(archive, names[name]) for name in (_MODEL, *_CONFIGS)}
        content = {name: archive.read(names[name]) for name in names if name in _KEPT or _TENSORS.fullmatch(name)}
    for name in _CONFIGS:
        _check_tensors(texts[name])
    _check_program(texts[_MODEL])
    content |= {name: json.dumps(value).encode() for name, value in texts.items()}
    content[_SAMPLES] = b""
    clean = io.BytesIO()
    writer: Any
    with torch.serialization._open_zipfile_writer(clean) as writer:  # aligned, as the reader maps tensors
        for name, value in content.items():
            if name not in ("byteorder", ".data/version"):  # which the writer adds
                writer.write_record(name, value, len(value))
    clean.seek(0)
    return clean


def _object(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> dict[str, Any]:
    return read_object(archive.read(info), MOST_TEXT)


def _check_tensors(config: dict[str, Any]) -> None:
    for name, one in config["config"].items():
        if one.get("use_pickle") is not False or not re.fullmatch(r"(weight|tensor)_\d+", str(one.get("path_name"))):
            raise _NotRead(f"a pickled object, {one_line(name, 80)!r}")
    _check_texts(config)


def _check_program(program: dict[str, Any]) -> None:
    program["guards_code"] = []
    for call in program["graph_module"]["module_call_graph"]:
        signature = call.get("signature")
        for key in ("in_spec", "out_spec") if signature else ():
            _check_spec(signature[key])
        call["signature"] = None if call["fqn"] else signature  # of parts: not needed
    program["graph_module"]["metadata"] = {}
    _check_texts({**program, "graph_module": {**program["graph_module"], "module_call_graph": []}})


def _check_texts(value: Any, key: str = "") -> None:
    """Refuse what would be run or called; metadata of nodes, which names files and classes, is removed."""
    if isinstance(value, dict):
        if "target" in value and "metadata" in value:
            value["metadata"] = {}
            if not _OPERATORS.fullmatch(str(value["target"])):
                raise _NotRead(f"a call of {one_line(repr(value['target']), 80)}")
        for name, one in value.items():
            _refuse_unless(_NAME.fullmatch(name) is not None, name)
            _check_texts(one, name)
    elif isinstance(value, list):
        for one in value:
            _check_texts(one, key)
    elif isinstance(value, str):
        if key == "expr_str":
            known = all(_WORDS.fullmatch(word) for word in _WORD.findall(value))
            _refuse_unless(known and _EXPRESSION.fullmatch(value) is not None, value)
        else:
            _refuse_unless(_NAME.fullmatch(value) is not None, value)


def _check_spec(text: str) -> None:
    """Refuse inputs and outputs that are made of other things than tuples, lists and tables."""

    def check(part: Any) -> None:
        plain = part["type"] in _CONTAINERS and (
            part["context"] is None or _NAME.fullmatch(part["context"].strip("[]"))
        )
        _refuse_unless(bool(plain), str(part["type"]))
        for child in part["children_spec"]:
            check(child)

    check(json.loads(text)[1])


def _refuse_unless(holds: bool, text: str) -> None:
    if not holds:
        raise _NotRead(f"the text {one_line(repr(text), 80)}")
