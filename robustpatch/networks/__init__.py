"""Base classifiers: the paper's, seen through NULL, and those that score all ablations in one pass; usual networks."""

from __future__ import annotations

from typing import Any

from torch import nn

from robustpatch.ablation import Ablation, Blocks, Columns, Rows
from robustpatch.encoding import Encoding
from robustpatch.errors import InvalidInput
from robustpatch.networks.block import BlockNet
from robustpatch.networks.grid import GridNet
from robustpatch.networks.mlp import MLP
from robustpatch.networks.mnist_cnn import MnistCNN
from robustpatch.networks.small_cnn import SmallCNN
from robustpatch.networks.strip import StripNet
from robustpatch.sparse import SparseAblation

__all__ = ["MLP", "BlockNet", "GridNet", "MnistCNN", "SmallCNN", "StripNet", "build", "one_pass_name", "usual_name"]

_ONE_PASS = {"strip": StripNet, "block": BlockNet, "grid": GridNet}


def one_pass_name(ablation: Ablation) -> str:
    """The name of the network that scores all ablations of this kind in one pass."""
    if isinstance(ablation, Columns | Rows):
        return "strip"
    return "block" if isinstance(ablation, Blocks) else "grid"


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

    "strip", "block", "grid": `StripNet`, `BlockNet`, `GridNet`, one pass. "mnist-cnn": the paper's, by enumeration.
    "small-cnn": `SmallCNN`. "mlp": `MLP`, for sparse ablation. The latter three see encoded images, or images as they
    are where `ablation` and `encoding` are None. Raises `InvalidInput`.
    """
    channels, height, width = image_shape
    inputs = channels if encoding is None else encoding.channels(channels)
    if name in _ONE_PASS:
        if ablation is None:
            raise InvalidInput(f"network is {name}, which sees parts of an image; without an ablation use small-cnn")
        if isinstance(ablation, SparseAblation):
            raise InvalidInput(f"network is {name}, which sees parts of an image, but ablation is {ablation}; use mlp")
        return _ONE_PASS[name](
            ablation, image_size=(height, width), num_classes=num_classes, in_channels=channels, **options
        )
    if name == "mnist-cnn":
        if (height, width) != (28, 28):
            raise InvalidInput(f"network mnist-cnn takes 28x28 images, not {height}x{width}; choose another network")
        return MnistCNN(num_classes=num_classes, in_channels=inputs, **options)
    if name == "small-cnn":
        return SmallCNN(image_size=(height, width), num_classes=num_classes, in_channels=inputs, **options)
    if name == "mlp":
        return MLP(image_size=(height, width), num_classes=num_classes, in_channels=inputs, **options)
    raise InvalidInput(f'network is {name!r}; known are "strip", "block", "grid", "mnist-cnn", "small-cnn" and "mlp"')
