"""A deeper network that sees one band at a time, and all bands of an image in one pass: for natural images."""

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


class ResidualStripNet(BandsNet):
    """Logits of every band of columns (or rows) in one pass; the receptive field of band n is exactly band n.

    Two convolutions without padding across the band take its width to one: of s columns, the first sees s // 2 + 1 at a
    time and bands that overlap share what it finds, the second sees all of them. After it no layer looks across: those
    are residual blocks of two convolutions along the band, a stage of them for each width, and each stage but the first
    halves the length. The number of the band enters as a learned embedding of each position along it. For rows, the
    image is transposed; the border is continued as in `StripNet`.

    Args:
        ablation: `Columns` or `Rows`, the only one it can be used with.
        widths: channels of the stages. blocks: residual blocks of each stage.
    """

    def __init__(
        self,
        ablation: Ablation,
        *,
        image_size: tuple[int, int] = (32, 32),
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 128, 256),
        blocks: int = 2,
    ) -> None:
        super().__init__(ablation, image_size, in_channels)
        if len(widths) < 1 or blocks < 1:
            raise InvalidInput(f"widths is {widths} and blocks {blocks}; give at least one stage of at least one block")
        axis = self.axis
        self._seen = axis.size // 2 + 1
        self.embedding = nn.Parameter(torch.randn(axis.count, widths[0], self.length) * 0.1)
        self.stem = nn.ModuleList(
            [
                nn.Conv2d(2 * in_channels, widths[0], (3, self._seen), padding=(1, 0), bias=False),
                nn.Conv2d(widths[0], widths[0], (3, axis.size - self._seen + 1), padding=(1, 0), bias=False),
            ]
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(widths[0]) for _ in range(2))
        stages, inputs = [], widths[0]
        for stage, outputs in enumerate(widths):
            for depth in range(blocks):
                stages.append(_Block(inputs, outputs, stride=2 if stage and depth == 0 else 1))
                inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, num_classes)

    def score_every(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N K"]:
        if self.axis.stride > 1:
            return super().score_every(x)
        image = wrapped(self.upright(x), self.axis, dim=3)
        return self._score(image, (1, 1), self.embedding.permute(1, 2, 0)[None])

    def score_some(self, x: Float[Tensor, "B C H W"], index: Int[Tensor, "B n"]) -> Float[Tensor, "B n K"]:
        seen = self._seen
        # All that the first convolution sees in each band, side by side: both then stride over what they have seen.
        within = torch.arange(self.axis.size - seen + 1, device=x.device)[:, None] + torch.arange(seen, device=x.device)
        image = self.side_by_side(self.upright(x), self.pixels(index, within))
        return self._score(image, (seen, len(within)), self.embedding[index].permute(0, 2, 3, 1))

    def _score(self, x: Tensor, strides: tuple[int, int], embedding: Tensor) -> Float[Tensor, "B n K"]:
        x = complemented(x)
        first, second = (convolution.weight for convolution in self.stem)
        x = self.norms[0](conv2d(x, first, None, (1, strides[0]), (1, 0))).relu()  # type: ignore[arg-type]
        x = conv2d(x, second, None, (1, strides[1]), (1, 0))  # type: ignore[arg-type]
        x = self.stages(self.norms[1](x + embedding).relu())
        return self.head(x.mean(dim=2).transpose(1, 2))


class _Block(nn.Module):
    """relu(x + f(x)), f two convolutions along the band; where the shape changes, x is brought to it by a third."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        along: dict = {"kernel_size": (3, 1), "padding": (1, 0), "bias": False}
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, stride=(stride, 1), **along),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, **along),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=(stride, 1), bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x) + self.shortcut(x)).relu()
