"""One door for models of any kind: what a name means, and the network behind it."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from torch import nn

from robustpatch.errors import InvalidInput
from robustpatch.intake import exported, huggingface, named, onnx_graph, torchscript
from robustpatch.intake.archive import members
from robustpatch.intake.preprocessing import Prepared, Preprocessing
from robustpatch.intake.weights import read_weights

SUFFIXES = (".pt", ".pth", ".ts", ".pt2", ".onnx", ".tar", ".ckpt", ".bin", ".safetensors")
LIBRARIES = ("timm", "torchvision")
_PICKLE = (
    "a pickle, which names the code that it runs; save the network as a graph by torch.export.save or torch.jit.save, "
    "or its weights alone and name the network: --model timm:NAME --weights FILE, or FILE.py:NAME"
)


@dataclass(frozen=True)
class Source:
    """A model that a user named: what is known before it is built, and how to build it.

    Attributes:
        name: as it was named. kind: "TorchScript", "torch.export", "ONNX", "timm", "torchvision" or "Hugging Face".
        preprocessing: from the model's own configuration; `replace` it to use another.
        classes: the names of the outputs, in order; None where the model does not say.
        files: the SHA-256 of each file, by name.
        notes: what is to be said before it is used.
        graph: whether its precision and device are those of the file.
    """

    name: str
    kind: str
    preprocessing: Preprocessing
    make: Callable[[tuple[int, int]], nn.Module] = field(repr=False)
    classes: tuple[str, ...] | None = None
    files: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    graph: bool = False

    def build(self, image_size: tuple[int, int]) -> nn.Module:
        """The network after its preprocessing, in evaluation mode, for images of that size. Raises `InvalidInput`."""
        network = self.make(self.preprocessing.size or image_size)
        return Prepared(network, self.preprocessing).eval()

    def __str__(self) -> str:
        names = "" if self.classes is None else f"; {len(self.classes)} classes named by the model"
        return f"model {self.name}, {self.kind}: {self.preprocessing}{names}"


def look_at(name: str, weights: str | None = None) -> Source | None:
    """The model that a name means, nothing of its file run: a file of TorchScript, `torch.export` or ONNX, told by its
    content; a folder of Hugging Face's; "timm:NAME" or "torchvision:NAME" with `weights`. None for anything else, such
    as FILE.py:NAME.

    Raises `InvalidInput` for files that hold none of these, and for whatever could run code.
    """
    library = name.partition(":")[0]
    if library in LIBRARIES:
        return _named(name, weights)
    path = Path(os.path.expanduser(name))
    of_file = name.endswith(SUFFIXES) and ":" not in path.name
    if not of_file and not os.path.isdir(path):
        if weights is not None:
            raise InvalidInput(
                f"weights is {weights}, but model {name} brings its own; drop --weights, or name a network: timm:NAME"
            )
        return None
    if weights is not None:
        raise InvalidInput(f"weights is {weights}, but model {name} holds its own; drop --weights")
    if not of_file:
        preprocessing, classes = huggingface.configuration(path)
        files = {one: _sha256(path / one) for one in huggingface.FILES}
        return Source(name, "Hugging Face", preprocessing, lambda _: huggingface.load(path), classes, files)
    if not path.is_file():
        raise InvalidInput(f"model is {name}, but there is no such file; give a path from here, or a full one")
    return _of_file(name, path)


def open_model(name: str, *, weights: str | None = None, image_size: tuple[int, int] = (224, 224)) -> nn.Module:
    """The network that a name means (see `look_at`), after its own preprocessing, in evaluation mode: an `nn.Module`
    of images [B,C,H,W] in [0, 1]. Raises `InvalidInput`.
    """
    found = look_at(name, weights)
    if found is None:
        raise InvalidInput(
            f"model is {name!r}; name a file (.pt, .pt2, .onnx), a folder of Hugging Face's, timm:NAME or "
            "torchvision:NAME"
        )
    return found.build(image_size)


def _of_file(name: str, path: Path) -> Source:
    files = {path.name: _sha256(path)}
    if path.suffix == ".safetensors":
        raise InvalidInput(
            f"model is {name}, a file of weights, which names no network; name it: --model timm:NAME (or "
            f"torchvision:NAME) --weights {name}; a checkpoint of robustpatch is named by --checkpoint"
        )
    if path.suffix == ".onnx":
        network, preprocessing, why_not = onnx_graph.load(path)
        notes = () if why_not is None else (f"model {name} has no gradients: {why_not}; attacks see its scores alone",)
        return Source(name, "ONNX", preprocessing, lambda _: network, None, files, notes, graph=True)
    try:
        inside = members(path)
    except (ValueError, zipfile.BadZipFile) as error:
        raise InvalidInput(f"model is {name}, which is not read: {error}; save it anew") from error
    if inside is not None and "models/model.json" in inside:
        network, preprocessing = exported.load(path)
        return Source(name, "torch.export", preprocessing, lambda _: network, None, files, graph=True)
    if inside is not None and any(one.startswith("code/") for one in inside):
        script = torchscript.load(path)
        return Source(
            name, "TorchScript", Preprocessing(source="the file says nothing of it"), lambda _: script, None, files
        )
    try:
        read_weights(path)
    except InvalidInput as error:
        raise InvalidInput(f"model is {name}, {_PICKLE}") from error
    raise InvalidInput(
        f"model is {name}, a state dict, which names no network; name it: --model timm:NAME (or torchvision:NAME) "
        f"--weights {name}, or FILE.py:NAME"
    )


def _named(name: str, weights: str | None) -> Source:
    if weights is None:
        raise InvalidInput(f"model is {name}, a network without weights; name them: --weights FILE.safetensors")
    path = Path(os.path.expanduser(weights))
    if not path.is_file():
        raise InvalidInput(f"weights is {weights}, but there is no such file; give a path from here, or a full one")
    tensors = read_weights(path)
    preprocessing, classes = named.configuration(name, path, tensors)
    return Source(
        name,
        name.partition(":")[0],
        preprocessing,
        lambda size: named.build(name, path, tensors, size),
        classes,
        {path.name: _sha256(path)},
    )


def overridden(
    source: Preprocessing,
    *,
    size: tuple[int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Preprocessing:
    """The preprocessing with what is given in place of the model's own. Raises `InvalidInput`."""
    if size is mean is std is None:
        return source
    if (mean is None) != (std is None):
        raise InvalidInput(f"mean is {mean} and std is {std}; give both or neither")
    given = [f"--{name}" for name, value in (("input-size", size), ("mean", mean), ("std", std)) if value is not None]
    found = replace(source, source=f"{', '.join(given)} as given; else {source.source}")
    if size is not None:
        found = replace(found, size=size, scaled=None)
    return found if mean is None or std is None else replace(found, mean=mean, std=std)


def _sha256(path: Path) -> str:
    digest = sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
