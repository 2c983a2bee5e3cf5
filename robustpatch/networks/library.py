"""Models of torchvision and timm as base classifiers, by name or as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.error import URLError

import torch
from torch import nn

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.sparse import SparseAblation
from robustpatch.encoding import Encoding
from robustpatch.errors import InvalidInput
from robustpatch.networks.packaged_weights import load_packaged
from robustpatch.networks.transformer import is_token_transformer
from robustpatch.networks.vit import TokenDropViT
from robustpatch.networks.widen import MEAN, STD, Normalized, answer, first_channels, widen

_MOST_ENLARGED = 16
SHORT = {"vit": "timm:vit_tiny_patch16_224", "resnet50": "torchvision:resnet50"}


def is_library_name(name: str) -> bool:
    """True for names of models whose library `create` knows."""
    return name in SHORT or name.startswith(("torchvision:", "timm:"))


def library_and_model(name: str) -> tuple[str, str]:
    """Splits such a name as `create` does: "torchvision" or "timm", and the library's own name of the model."""
    library, _, model = SHORT.get(name, name).partition(":")
    return library, model


def create(
    name: str, *, num_classes: int | None, image_size: tuple[int, int], pretrained: bool = False, **options: Any
) -> nn.Module:
    """A model by name: "torchvision:NAME", "timm:NAME", or "vit" and "resnet50"; `options` are its constructor's.

    `num_classes` None: as many as it has by default. Pretrained weights are downloaded by the library, unless a Python
    package that is installed holds them (see `packaged_weights`). Raises `InvalidInput`.
    """
    if not is_library_name(name):
        raise InvalidInput(f'model is "{name}"; use torchvision:NAME, timm:NAME, {" or ".join(SHORT)}')
    library, model = library_and_model(name)
    options = options if num_classes is None else {"num_classes": num_classes, **options}
    try:
        return (_torchvision if library == "torchvision" else _timm)(model, image_size, pretrained, options)
    except InvalidInput:
        raise
    except (URLError, OSError) as error:
        raise InvalidInput(
            f"pretrained is {pretrained}, but the weights of {name} cannot be had ({error}); leave it out, or fetch "
            "them where there is a network"
        ) from error
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidInput(f"model is {name}, which {library} does not build ({reason})") from error


def _torchvision(name: str, image_size: tuple[int, int], pretrained: bool, options: dict[str, Any]) -> nn.Module:
    import torchvision  # slow to import

    if name.startswith("vit_"):
        if image_size[0] != image_size[1]:
            raise InvalidInput(
                f"image_size is {image_size[0]}x{image_size[1]}, but torchvision's {name} sees squares; take timm's"
            )
        options = {"image_size": image_size[0], **options}
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": True, **({} if pretrained else {"aux_logits": False}), **options}
    if not pretrained:
        return torchvision.models.get_model(name, **options)
    classes = options.pop("num_classes", None)
    model = torchvision.models.get_model(name, weights="DEFAULT", **options)
    if classes is None:
        return model
    return _with_layers_of(torchvision.models.get_model(name, num_classes=classes, **options), model)


def _with_layers_of(fresh: nn.Module, model: nn.Module) -> nn.Module:
    """`model`, with the layers of `fresh` where their weights are of other sizes: those that tell the classes apart."""
    for path, layer in list(fresh.named_modules()):
        own = model.get_submodule(path)
        shapes = [[weight.shape for weight in one.parameters(recurse=False)] for one in (layer, own)]
        if shapes[0] != shapes[1]:
            parent, _, last = path.rpartition(".")
            setattr(model.get_submodule(parent), last, layer)
    return model


def _timm(name: str, image_size: tuple[int, int], pretrained: bool, options: dict[str, Any]) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise InvalidInput(
            f"model is timm:{name}, but timm is not installed; pip install 'robustpatch[timm]'"
        ) from error
    if pretrained and (model := load_packaged(name, options)) is not None:
        return model
    try:
        return timm.create_model(name, pretrained=pretrained, img_size=image_size, **options)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, pretrained=pretrained, **options)  # a network for any size


def check_enlarge(enlarge: Any) -> int:
    """Return how many times as wide and high a network is shown images: whole, from 1 to 16. Raises `InvalidInput`."""
    if enlarge not in range(1, _MOST_ENLARGED + 1):
        raise InvalidInput(f"enlarge is {enlarge}; give a whole number from 1 to {_MOST_ENLARGED}")
    return int(enlarge)


def normalization(
    model: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that a model's images are normalised by: those given, or the ones that timm notes,
    ImageNet's for torchvision's, none (0 and 1) for any other: of three channels, or the one or four that its first
    convolution reads.
    """
    if (mean is None) != (std is None):
        raise InvalidInput(f"mean is {mean} and std {std}; give both or neither")
    noted = getattr(model, "pretrained_cfg", None)
    noted = noted if isinstance(noted, dict) else {}
    library = type(model).__module__.startswith("torchvision.models")
    read = {1: 1, 4: 4}.get(first_channels(model) or 3, 3)  # any other may stand behind a layer of another kind
    own = tuple(noted.get("mean", MEAN if library else (0.0,) * read) if mean is None else mean)
    by = tuple(noted.get("std", STD if library else (1.0,) * read) if std is None else std)
    if len(own) != len(by) or not all(value > 0 for value in by):
        raise InvalidInput(f"mean is {mean} and std {std}; give as many of each, std above 0")
    return own, by


def adapt(
    model: nn.Module,
    *,
    ablation: Ablation | SparseAblation | None,
    encoding: Encoding | None,
    image_shape: tuple[int, int, int],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    enlarge: int = 1,
) -> nn.Module:
    """The model as a base classifier of images [C,H,W] in [0, 1]; it is changed.

    Its first convolution or patch embedding is widened (see `widen`); a vision transformer drops hidden tokens
    (`TokenDropViT`); any other model is a plain base. Without ablation and encoding, the model after a normalisation.
    With `enlarge` the model was built for images so many times as wide and high, and is shown such, interpolated.
    """
    own, by = normalization(model, mean, std)
    channels, height, width = image_shape
    if enlarge > 1:
        if encoding is not None and ablation is not None:
            raise InvalidInput(f"enlarge is {enlarge}, which is for networks of whole images; here use window")
        return nn.Sequential(Normalized(own, by), nn.Upsample(scale_factor=enlarge, mode="bilinear"), model)
    if ablation is None or encoding is None:
        return nn.Sequential(Normalized(own, by), model)
    wide = widen(model, encoding, image_size=(height, width), in_channels=channels, mean=own, std=by)
    if is_token_transformer(wide) and isinstance(ablation, Ablation):
        return TokenDropViT(wide, ablation, image_size=(height, width), in_channels=channels, encoding=encoding)
    return _fastest(wide, encoding.channels(channels), (height, width))


def _fastest(model: nn.Module, channels: int, image_size: tuple[int, int]) -> nn.Module:
    """The model with its weights in the order of memory that is fastest, channels last; as they were where it then
    fails: a network that flattens by `view` needs the other order.
    """
    model = model.to(memory_format=torch.channels_last)
    parameter = next(model.parameters(), torch.zeros(()))
    try:
        answer(model, torch.zeros(2, channels, *image_size).to(parameter))
    except InvalidInput:
        model = model.to(memory_format=torch.contiguous_format)
    return model
