"""A usual convolutional network: what a classifier is without a defense."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustpatch.errors import InvalidInput
from robustpatch.networks.convolution import Conv2d, misread


class SmallCNN(nn.Module):
    """Logits of whole images: convolutions 4×4 of stride 2, one hidden layer; the paper's base for MNIST, half as wide.

    It computes in the precision of its weights. With the defaults, on 28×28 images, 436,202 parameters.

    Args:
        image_size: (height, width), each halved (rounding down) as often as there are `widths`.
        num_classes: K. in_channels: C. widths: channels of the convolutions. hidden: units of the hidden layer.
        deeper: 3×3 convolutions after those, at their resolution. norm: batch norm after each convolution.
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int] = (28, 28),
        num_classes: int = 10,
        in_channels: int = 1,
        widths: Sequence[int] = (32, 64),
        hidden: int = 128,
        deeper: int = 0,
        norm: bool = False,
    ) -> None:
        super().__init__()
        height, width = (length >> len(widths) for length in image_size)
        if len(widths) < 1 or min(height, width) < 1:
            raise InvalidInput(
                f"widths is {widths}, one layer each, for {image_size[0]}x{image_size[1]} images; "
                "give at least one, and no more than the image can be halved"
            )
        layers: list[nn.Module] = []
        for depth, (inputs, outputs) in enumerate(zip((in_channels, *widths), widths, strict=False)):
            layers += _layer(inputs, outputs, 4, 2, image_size[1] >> depth, norm)
        for _ in range(deeper):
            layers += _layer(widths[-1], widths[-1], 3, 1, width, norm)
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * height * width, hidden), nn.ReLU())
        self.head = nn.Linear(hidden, num_classes)
        if norm:
            self.to(memory_format=torch.channels_last)  # in which norm and convolution take half the time on a CPU

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        return self.head(self.features(x.to(self.head.weight.dtype)))


def _layer(inputs: int, outputs: int, size: int, stride: int, width: int, norm: bool) -> list[nn.Module]:
    """A convolution of images that are `width` pixels wide, padded by one pixel, and what follows it."""
    unsafe = misread((1, inputs, width, width), (outputs, inputs, size, size), (stride, stride), (1, 1))
    kind = Conv2d if unsafe else nn.Conv2d  # the plain one where it does: `defenses.ibp` knows its bounds
    convolution = kind(inputs, outputs, size, stride=stride, padding=1, bias=not norm)
    return [convolution, *([nn.BatchNorm2d(outputs)] if norm else []), nn.ReLU()]
