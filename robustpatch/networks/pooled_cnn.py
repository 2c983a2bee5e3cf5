"""A convolutional network for small photographs that a CPU trains in an hour."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from robustpatch.errors import InvalidInput
from robustpatch.networks.convolution import Conv2d


class PooledCNN(nn.Module):
    """Logits of whole images, by pairs of 3×3 convolutions; each pair halves the image after its first convolution.

    Most operations are wide convolutions of few pixels, which processors with bfloat16 units compute fastest: 0.24
    GFLOP for an image of 32×32. It computes in the precision of its weights. With the defaults 1,977,514 parameters.
    (After Jordan 2024, arXiv:2404.00498: that network for CIFAR-10 with a 2×2 convolution that is learnt.)

    Args:
        image_size: (height, width), one pixel less of which is halved (rounding down) as often as there are `widths`.
        num_classes: K. in_channels: C. widths: channels of the pairs. first: those of the 2×2 convolution before.
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int] = (32, 32),
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 256, 256),
        first: int = 32,
    ) -> None:
        super().__init__()
        if not widths or min(*widths, first) < 1 or min(image_size) - 1 >> len(widths) < 1:
            raise InvalidInput(
                f"widths is {widths} and first {first}, for {image_size[0]}x{image_size[1]} images; give positive "
                "widths, at least one, and no more than the image can be halved"
            )
        self.first = Conv2d(in_channels, first, 2)
        self.pairs = nn.ModuleList(
            _Pair(inputs, outputs) for inputs, outputs in zip((first, *widths), widths, strict=False)
        )
        self.head = nn.Linear(widths[-1], num_classes)
        self.to(memory_format=torch.channels_last)  # in which convolutions are fastest on a CPU

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        x = functional.gelu(self.first(x.to(self.head.weight.dtype)))
        for pair in self.pairs:
            x = pair(x)
        return self.head(x.amax((2, 3)))


class _Pair(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.wide = Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.wide_norm = nn.BatchNorm2d(outputs)
        self.deep = Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.deep_norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B O h w"]:
        x = functional.gelu(self.wide_norm(functional.max_pool2d(self.wide(x), 2)))
        return functional.gelu(self.deep_norm(self.deep(x)))
