"""Networks of timm and torchvision by name, with weights from a file, and what their library says of preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput
from robustpatch.intake.preprocessing import Preprocessing
from robustpatch.intake.weights import fill
from robustpatch.networks.library import create
from robustpatch.networks.library_options import check_permitted
from robustpatch.storage.bounded_json import read_object

_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # of GoogLeNet and Inception: used in training alone
_KNOWN = {
    "bilinear": "bilinear",
    "bicubic": "bicubic",
    "nearest": "nearest",
    "lanczos": "bicubic",
    "random": "bilinear",
}


def configuration(name: str, weights: Path, tensors: dict[str, Tensor]) -> tuple[Preprocessing, tuple[str, ...] | None]:
    """The preprocessing and the class names, where they are known, of "timm:NAME" or "torchvision:NAME".

    Of timm: its `pretrained_cfg`, or that of a config.json beside the weights, as timm writes for them. Raises
    `InvalidInput` for a name that the library has not.
    """
    library, _, model = name.partition(":")
    try:
        check_permitted(name, library, model, {})
    except InvalidInput as error:
        raise InvalidInput(f"model is {str(error).removeprefix('network is ')}") from error
    if library == "torchvision":
        return _of_torchvision(model, name), None
    return _of_timm(model, name, weights, tensors)


def build(name: str, weights: Path, tensors: dict[str, Tensor], size: tuple[int, int]) -> nn.Module:
    """The network for images of that size, with these weights. Raises `InvalidInput` where they are not its."""
    library, _, model = name.partition(":")
    if library == "torchvision":
        tensors = {key: value for key, value in tensors.items() if not key.startswith(_AUXILIARY)}
        classes = _read(tensors, _classifier(name, size), 0)
        return fill(create(name, num_classes=classes, image_size=size), tensors, weights, name).eval()
    cfg, options = _cfg(model), {}
    channels, classes = _read(tensors, cfg.get("first_conv"), 1), _read(tensors, cfg.get("classifier"), 0)
    if channels is not None and channels != 3:
        options["in_chans"] = channels
    return fill(create(name, num_classes=classes, image_size=size, **options), tensors, weights, name).eval()


def _classifier(name: str, size: tuple[int, int]) -> str | None:
    """The layer whose weights are as many as there are classes: of torchvision's networks, each calls it otherwise."""
    with torch.device("meta"):
        few, more = (create(name, num_classes=number, image_size=size).state_dict() for number in (2, 3))
    other = [key for key in few if few[key].shape != more[key].shape and key.endswith(".weight")]
    return other[-1].removesuffix(".weight") if other else None


def _of_torchvision(model: str, name: str) -> Preprocessing:
    try:
        import torchvision  # slow to import

        known: Any = torchvision.models.get_model_weights(model)
        preset = known.DEFAULT.transforms()
    except (ValueError, AttributeError):
        return Preprocessing(channels=3, source=f"torchvision has no weights of {name}")
    side = preset.crop_size[0]
    return Preprocessing(
        size=(side, side),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        scaled=preset.resize_size[0],
        interpolation=_KNOWN[preset.interpolation.value],
        channels=3,
        source="the transforms of torchvision's weights",
    )


def _of_timm(
    model: str, name: str, weights: Path, tensors: dict[str, Tensor]
) -> tuple[Preprocessing, tuple[str, ...] | None]:
    cfg, source = _cfg(model), "timm's pretrained_cfg"
    beside = weights.parent / "config.json"
    if beside.is_file():
        try:
            own = read_object(beside.read_bytes())
        except ValueError as error:
            raise InvalidInput(f"weights is {weights}, beside a config.json that is none ({error}); mend it") from error
        if own.get("architecture") == model and isinstance(own.get("pretrained_cfg"), dict):
            cfg, source = {**cfg, **own, **own["pretrained_cfg"]}, f"{beside}"
    try:
        side = tuple(int(one) for one in cfg["input_size"])[1:]
        share, mode = float(cfg.get("crop_pct") or 1.0), cfg.get("crop_mode") or "center"
        mean, std = tuple(map(float, cfg["mean"])), tuple(map(float, cfg["std"]))
        interpolation = _KNOWN[cfg.get("interpolation") or "bilinear"]
        names = cfg.get("label_names")
        classes = tuple(map(str, names)) if names else None
        scaled = [int(one / share) for one in side]
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InvalidInput(
            f"weights is {weights}, of which {source} is not read ({one_line(repr(error), 200)}); mend it"
        ) from error
    channels = _read(tensors, cfg.get("first_conv"), 1) or 3
    if channels != len(mean):  # trained by the user on other images
        mean, std = (), ()
    to = (scaled[0], scaled[1]) if mode == "squash" else min(scaled)
    size = (side[0], side[1])
    return Preprocessing(size, mean, std, to, interpolation, channels, source), classes


def _cfg(model: str) -> dict[str, Any]:
    import timm

    found = timm.models.get_pretrained_cfg(model)
    return {} if found is None else found.to_dict()


def _read(tensors: Mapping[str, Tensor], layer: object, axis: int) -> int | None:
    """The length of an axis of a layer's weights, which say for how many channels or classes they are."""
    layer = layer[0] if isinstance(layer, list | tuple) and layer else layer
    found = tensors.get(f"{layer}.weight")
    return None if found is None or found.ndim <= axis else int(found.shape[axis])
