"""A network that sees one band at a time, and all bands of an image in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustpatch.ablations.base import Ablation
from robustpatch.errors import InvalidInput
from robustpatch.networks.bands import BandsNet
from robustpatch.networks.convolution import conv2d
from robustpatch.networks.one_pass import complemented, wrapped


class StripNet(BandsNet):
    """Logits of every band of columns (or rows) in one pass; the receptive field of band n is exactly band n.

    The image is padded around its border by size - 1 columns, so that band n is the `size` columns from n·stride on
    without a break, also where it wraps. The first convolution is as wide as the band, and no other looks across: all
    work along it. The number of the band enters as a learned embedding of each position along it. For rows, the image
    is transposed.

    Args:
        ablation: `Columns` or `Rows`, the only one it can be used with.
        widths: channels of the convolutions; each but the first halves the length of the band.
        hidden: units between the flattened band and the logits; 0 for none.
    """

    def __init__(
        self,
        ablation: Ablation,
        *,
        image_size: tuple[int, int] = (28, 28),
        num_classes: int = 10,
        in_channels: int = 1,
        widths: Sequence[int] = (64, 128, 128),
        hidden: int = 128,
    ) -> None:
        super().__init__(ablation, image_size, in_channels)
        if len(widths) < 1:
            raise InvalidInput(f"widths is {widths}; give at least one number of channels")
        axis, length = self.axis, self.length
        self.embedding = nn.Parameter(torch.randn(axis.count, widths[0], length) * 0.1)
        convolutions, inputs = [], 2 * in_channels
        for depth, outputs in enumerate(widths):
            across, stride = (axis.size, 1) if depth == 0 else (1, 2)
            convolutions.append(nn.Conv2d(inputs, outputs, (5, across), stride=(stride, 1), padding=(2, 0)))
            inputs, length = outputs, -(-length // stride)
        self.convolutions = nn.ModuleList(convolutions)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in widths)
        self.head = nn.Sequential(
            nn.Conv2d(inputs, hidden or num_classes, (length, 1)),
            *([nn.ReLU(inplace=True), nn.Conv2d(hidden, num_classes, 1)] if hidden else []),
        )

    def score_every(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N K"]:
        if self.axis.stride > 1:
            return super().score_every(x)
        image = wrapped(self.upright(x), self.axis, dim=3)
        return self._score(image, 1, self.embedding.permute(1, 2, 0)[None])

    def score_some(self, x: Float[Tensor, "B C H W"], index: Int[Tensor, "B n"]) -> Float[Tensor, "B n K"]:
        # The bands side by side: a first convolution that strides by its own width meets each of them alone.
        image = self.side_by_side(self.upright(x), self.pixels(index))
        return self._score(image, self.axis.size, self.embedding[index].permute(0, 2, 3, 1))

    def _score(self, x: Tensor, stride: int, embedding: Tensor) -> Float[Tensor, "B n K"]:
        x = complemented(x)
        for depth, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            if depth == 0:
                assert isinstance(convolution, nn.Conv2d)
                first = conv2d(x, convolution.weight, convolution.bias, (1, stride), (2, 0))
                x = norm(first + embedding.to(first.dtype)).relu()
            else:
                x = norm(convolution(x)).relu()
        return self.head(x)[:, :, 0].transpose(1, 2)
