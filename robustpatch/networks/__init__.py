"""Base classifiers: the paper's, seen through NULL, and those that score all ablations in one pass."""

from __future__ import annotations

from typing import Any

from torch import nn

from robustpatch.ablation import Ablation
from robustpatch.encoding import Encoding
from robustpatch.errors import InvalidInput
from robustpatch.networks.mnist_cnn import MnistCNN
from robustpatch.networks.strip import StripNet

__all__ = ["MnistCNN", "StripNet", "build"]


def build(
    name: str,
    *,
    ablation: Ablation,
    image_shape: tuple[int, int, int],
    num_classes: int,
    encoding: Encoding,
    options: dict[str, Any],
) -> nn.Module:
    """An untrained base classifier by `name`, for images [C,H,W]; `options` are its own arguments.

    "strip": `StripNet`, one pass. "mnist-cnn": the paper's, by enumeration. Raises `InvalidInput`.
    """
    channels, height, width = image_shape
    if name == "strip":
        return StripNet(ablation, image_size=(height, width), num_classes=num_classes, in_channels=channels, **options)
    if name == "mnist-cnn":
        if (height, width) != (28, 28):
            raise InvalidInput(f"network mnist-cnn takes 28x28 images, not {height}x{width}; choose another network")
        return MnistCNN(num_classes=num_classes, in_channels=encoding.channels(channels), **options)
    raise InvalidInput(f'network is {name!r}; known are "strip" and "mnist-cnn"')
