"""A model of the user's own for a run: opened from a file or by name, its images as it wants them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from evaluate.cli.command import check_dtype
from evaluate.cli.options import ModelOptions, Options
from evaluate.model.import_by_name import module_of, named_object
from robustpatch.cli.text import one_line
from robustpatch.data.image_set import ImageSet
from robustpatch.data.parse import parse_image_size
from robustpatch.errors import InvalidInput
from robustpatch.intake import Prepared, Preprocessing, Source, look_at, overridden

_OF_MODELS = ("weights", "input_size", "mean", "std")


@dataclass(frozen=True)
class Opened:
    """A model, what a run notes of it, the stem of its folder's name, the user's module that made it, and what is to be
    said of it.
    """

    model: torch.nn.Module
    note: dict[str, Any]
    stem: str
    module: str | None = None
    notes: tuple[str, ...] = ()


class OfArrays(torch.nn.Module):
    """A function of NumPy images, float32 [B,C,H,W], to scores [B,K]: what it answers, and no gradients."""

    def __init__(self, function: Callable[[np.ndarray], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Float[Tensor, "B C H W"]) -> Tensor:
        found = np.asarray(self.function(x.detach().float().cpu().numpy().copy()))
        if found.ndim != 2 or len(found) != len(x):
            raise InvalidInput(
                f"model {getattr(self.function, '__name__', 'function')} answers {len(x)} images with an array of "
                f"shape {found.shape}; return scores [B,K]"
            )
        return torch.from_numpy(found).to(x.device)


def source_of(options: ModelOptions) -> Source | None:
    """Return what `--model` names, looked at and not built, with the preprocessing that the options ask for; None of a
    checkpoint and of code, FILE.py:NAME. Raises `InvalidInput`.
    """
    if options.model is None:
        for name in _OF_MODELS:
            if getattr(options, name) is not None:
                option = name.replace("_", "-")
                raise InvalidInput(
                    f"{option} is {getattr(options, name)}, but checkpoint {options.checkpoint} has its own; drop "
                    f"--{option}, or name a model with --model"
                )
        return None
    found = look_at(options.model, options.weights)
    return None if found is None else replace(found, preprocessing=_preprocessing(options, found.preprocessing))


def images_of(options: Options, source: Source | None) -> ImageSet:
    """The images of a run: brought to the size and the classes that the model says, where no option does.

    Raises `InvalidInput` where the classes of the folder are not the model's, and where those of another dataset are
    the model's in another order.
    """
    if source is None:
        return options.load()
    named = options.dataset == "folder" and options.classes is None
    framing = source.preprocessing.framing if options.dataset in ("folder", "imagenette") else None
    try:
        images = options.load(framing=framing, class_names=source.classes if named else None)
    except InvalidInput as error:
        if named and source.classes is not None and str(error).startswith("class_names"):
            raise InvalidInput(
                f"model is {options.model}, whose own {error}; or name the folders in the order of the outputs with "
                "--classes"
            ) from error
        raise
    theirs = source.classes
    if theirs is not None and options.classes is None and theirs != images.class_names:
        if {*theirs} == {*images.class_names}:
            raise InvalidInput(
                f"model is {options.model}, which answers {one_line(', '.join(theirs[:5]), 200)} in this order, but "
                f"dataset {options.dataset} has {one_line(', '.join(images.class_names[:5]), 200)}; use a folder, "
                "whose classes are put in the model's order"
            )
        note = f"the model's classes ({one_line(', '.join(theirs[:3]), 100)}, …) are taken for the dataset's in order"
        images = replace(images, notes=(*images.notes, note))
    return images


def open_of(
    options: ModelOptions,
    image_size: tuple[int, int] | tuple[int, ...],
    device: str,
    dtype: str,
    source: Source | None = None,
) -> Opened:
    """Build what `--model` names for images of that size, on a device, in evaluation mode. Raises `InvalidInput`."""
    assert options.model is not None
    given = {name: getattr(options, name) for name in _OF_MODELS if getattr(options, name) is not None}
    precision, source = check_dtype(dtype), source or source_of(options)
    if source is None:
        model = own_model(options.model, device=device, dtype=dtype)
        preprocessing = _preprocessing(options, Preprocessing(source="FILE.py:NAME says nothing of it"))
        stem, module = options.model.rpartition(":")[2], module_of(options.model, "model").__name__
        if not given:
            return Opened(model, {}, stem, module)
        if any(hasattr(model, name) for name in ("predict", "certify")):
            raise InvalidInput(
                f"model is {options.model}, a {type(model).__name__} with its own predict, before which nothing is "
                "put; drop --input-size, --mean and --std"
            )
        prepared = without_gradients(Prepared(model, preprocessing).eval()).to(device, precision)
        return Opened(
            prepared, {**given, "preprocessing": str(preprocessing)}, stem, module, (f"images {preprocessing}",)
        )
    if source.graph and precision != torch.float32:
        raise InvalidInput(f"dtype is {dtype}, but {source.kind} files compute in their own; drop --dtype")
    model = without_gradients(source.build((image_size[0], image_size[1]))).to(device, precision)
    note = {
        "kind": source.kind,
        "model_files_sha256": source.files,
        "preprocessing": str(source.preprocessing),
        **given,
    }
    stem = Path(options.model).stem if source.kind not in ("timm", "torchvision") else options.model.partition(":")[2]
    return Opened(model, note, stem, None, (str(source), *source.notes))


def own_model(name: str, *, device: str = "cpu", dtype: str = "float32") -> torch.nn.Module:
    """Import the module FILE.py:NAME or MODULE:NAME, or call the function of that name that returns one, and bring it
    into evaluation mode; a function that needs an argument is one of NumPy images (`OfArrays`). Raises `InvalidInput`
    for anything else.
    """
    precision = check_dtype(dtype)
    found = named_object(name, "model")
    if not isinstance(found, torch.nn.Module) and callable(found):
        if not isinstance(found, type) and _takes_images(found):
            if precision != torch.float32:
                raise InvalidInput(f"dtype is {dtype}, but model {name} computes with NumPy in its own; drop --dtype")
            return OfArrays(found).eval()
        found = found()
    if not isinstance(found, torch.nn.Module):
        raise InvalidInput(
            f"model is {name}, a {type(found).__name__}; name a torch.nn.Module, a function without arguments that "
            "returns one, or a function of NumPy images [B,C,H,W] that returns scores [B,K] (any other certifier: "
            "robustpatch audit)"
        )
    return without_gradients(found.eval()).to(device, precision)


def without_gradients(model: torch.nn.Module) -> torch.nn.Module:
    """Turn off the gradients of the weights: also TorchScript's, which knows no `requires_grad_`."""
    for weight in model.parameters():
        weight.requires_grad_(False)
    return model


def _takes_images(function: Callable[..., Any]) -> bool:
    """Tell whether a function cannot be called without an argument."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a library's, in C
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(one.kind in positional and one.default is one.empty for one in parameters)


def _preprocessing(options: ModelOptions, own: Preprocessing) -> Preprocessing:
    return overridden(
        own,
        size=None if options.input_size is None else _input_size(options.input_size),
        mean=_numbers("mean", options.mean),
        std=_numbers("std", options.std),
    )


def _input_size(text: str) -> tuple[int, int]:
    try:
        return parse_image_size(text)
    except InvalidInput as error:
        raise InvalidInput(str(error).replace("image_size", "input_size", 1)) from error


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidInput(
            f"{option} is {one_line(repr(text), 80)}; give a number for each channel, as in 0.485,0.456,0.406"
        ) from error
    if len(found) not in (1, 3, 4) or not all(abs(value) < 1e6 for value in found):
        raise InvalidInput(f"{option} is {one_line(repr(text), 80)}; give one number, or one for each of 3 channels")
    return found
