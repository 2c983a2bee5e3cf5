"""Names of networks -> networks: the ones of this package, and those of torchvision and timm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

from torch import nn

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.sparse import SparseAblation
from robustpatch.ablations.union import Union
from robustpatch.cli.text import one_line
from robustpatch.encoding import Encoding
from robustpatch.errors import InvalidInput
from robustpatch.networks.band import BandNet
from robustpatch.networks.block import BlockNet
from robustpatch.networks.conv_block import ConvBlockNet
from robustpatch.networks.grid import GridNet
from robustpatch.networks.library import adapt, check_enlarge, create, is_library_name, library_and_model
from robustpatch.networks.library_options import check_permitted
from robustpatch.networks.mlp import MLP
from robustpatch.networks.mnist_cnn import MnistCNN
from robustpatch.networks.one_pass import OnePass
from robustpatch.networks.pooled_cnn import PooledCNN
from robustpatch.networks.residual_strip import ResidualStripNet
from robustpatch.networks.resnet import ResNet18
from robustpatch.networks.small_cnn import SmallCNN
from robustpatch.networks.strip import StripNet
from robustpatch.networks.union import UnionNet
from robustpatch.networks.window import WindowNet
from robustpatch.options import arguments_of, read, table_of
from robustpatch.plugins import load_plugin, plugin_names

ONE_PASS: dict[str, type[OnePass]] = {  # the first that can see an ablation is its usual network
    "strip": StripNet,
    "residual-strip": ResidualStripNet,
    "band": BandNet,
    "block": BlockNet,
    "conv-block": ConvBlockNet,
    "grid": GridNet,
    "window": WindowNet,
    "union": UnionNet,
}
BY_ENUMERATION: dict[str, Callable[..., nn.Module]] = {
    "mnist-cnn": MnistCNN,
    "resnet18": ResNet18,
    "small-cnn": SmallCNN,
    "pooled-cnn": PooledCNN,
    "mlp": MLP,
}
_GIVEN = ("ablation", "image_size", "num_classes", "in_channels")  # arguments of networks that are no options


def one_pass_name(ablation: Ablation) -> str:
    """The name of the usual network that scores all ablations of this kind in one pass. Raises `InvalidInput`."""
    for name, network in ONE_PASS.items():
        if network.can_see(ablation):
            return name
    raise InvalidInput(f"ablation is {ablation}, which none of {', '.join(ONE_PASS)} can see; name another network")


def usual_name(ablation: Ablation | SparseAblation) -> str:
    """The name of the network meant for an ablation: the one-pass network, or "mlp" where it is sparse."""
    return "mlp" if isinstance(ablation, SparseAblation) else one_pass_name(ablation)


def build(
    name: str,
    *,
    ablation: Ablation | SparseAblation | None,
    image_shape: tuple[int, int, int],
    num_classes: int,
    encoding: Encoding | None,
    options: dict[str, Any],
) -> nn.Module:
    """An untrained network by `name`, for images [C,H,W]; `options` are its own arguments.

    In one pass: "strip", "residual-strip", "band", "block", "conv-block", "grid", "window": `StripNet`,
    `ResidualStripNet`, `BandNet`, `BlockNet`, `ConvBlockNet`, `GridNet`, `WindowNet`; "union": `UnionNet` of such,
    whose option `parts` has a name and options for each part of the ablation, by default the usual ones. By
    enumeration: "mnist-cnn" and "resnet18", the paper's; "small-cnn" and "pooled-cnn"; and "mlp", for sparse ablation.
    The latter see encoded images, or, but for the one on MNIST, images as they are where `ablation` and `encoding` are
    None.
    "torchvision:NAME", "timm:NAME", or "vit" (timm's ViT-Tiny/16) and "resnet50" (torchvision's): see `library.adapt`;
    with options `mean` and `std`, and those of `library_options`, for `options` may come with a file. Raises
    `InvalidInput`.
    """
    channels, height, width = image_shape
    encoded = channels if encoding is None else encoding.channels(channels)
    if name == "union":
        parts = read(table_of({"parts": list[dict[str, Any]]}), options, "network union: ").get("parts")
        return _union(ablation, image_shape, num_classes, encoding, parts)
    make = ONE_PASS.get(name) or BY_ENUMERATION.get(name) or load_plugin("networks", name)
    if make is not None:
        own = read(arguments_of(make, *_GIVEN), options, f"network {name}: ")
        one_pass = isinstance(make, type) and issubclass(make, OnePass)
        if one_pass:
            _check_ablation(name, ablation)
        given = {"ablation": ablation, "image_size": (height, width), "num_classes": num_classes}
        given["in_channels"] = channels if one_pass else encoded
        taken = signature(make).parameters
        return make(**{key: value for key, value in given.items() if key in taken}, **own)
    if is_library_name(name):
        own = dict(options)
        check_permitted(name, *library_and_model(name), own)
        mean, std, enlarge = own.pop("mean", None), own.pop("std", None), check_enlarge(own.pop("enlarge", 1))
        model = create(name, num_classes=num_classes, image_size=(height * enlarge, width * enlarge), **own)
        return adapt(
            model, ablation=ablation, encoding=encoding, image_shape=image_shape, mean=mean, std=std, enlarge=enlarge
        )
    known = ", ".join(f'"{known}"' for known in (*_own_names(), "vit", "resnet50", "torchvision:NAME"))
    raise InvalidInput(f'network is {name!r}; known are {known} and "timm:NAME"')


def _own_names() -> list[str]:
    return [*ONE_PASS, *BY_ENUMERATION, *plugin_names("networks")]


def _check_ablation(name: str, ablation: Ablation | SparseAblation | None) -> None:
    if ablation is None:
        raise InvalidInput(f"network is {name}, which sees parts of an image; without an ablation use small-cnn")
    if isinstance(ablation, SparseAblation):
        raise InvalidInput(f"network is {name}, which sees parts of an image, but ablation is {ablation}; use mlp")


def _union(
    ablation: Ablation | SparseAblation | None,
    image_shape: tuple[int, int, int],
    num_classes: int,
    encoding: Encoding | None,
    parts: Sequence[dict[str, Any]] | None,
) -> UnionNet:
    if not isinstance(ablation, Union):
        raise InvalidInput(f"network is union, but ablation is {ablation}; name one such as columns:2+rows:2")
    given = [{"name": one_pass_name(part)} for part in ablation.parts] if parts is None else [*parts]
    if len(given) != len(ablation.parts):
        raise InvalidInput(f"network union has {len(given)} parts, but ablation is {ablation}; give one for each part")
    single = [name for name in ONE_PASS if name != "union"]
    built = []
    for part, options in zip(ablation.parts, given, strict=True):
        if options.get("name") not in single:
            raise InvalidInput(
                f"network union has the part {one_line(options, 80)}; a part is a table with one of the names "
                f"{', '.join(single)}"
            )
        name, own = str(options["name"]), {key: value for key, value in options.items() if key != "name"}
        built.append(
            build(name, ablation=part, image_shape=image_shape, num_classes=num_classes, encoding=encoding, options=own)
        )
    return UnionNet(ablation, built)
