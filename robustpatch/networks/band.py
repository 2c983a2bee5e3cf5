"""A residual network that sees one band at a time and keeps it two-dimensional: for natural images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from robustpatch.ablations.base import Ablation
from robustpatch.errors import InvalidInput
from robustpatch.networks.bands import BandsNet
from robustpatch.networks.one_pass import complemented


class BandNet(BandsNet):
    """Logits of every band of columns (or rows); the receptive field of band n is exactly band n.

    Each band is cut out and classified by itself, as a small image of 4 by L pixels: a residual network whose four
    stages have the shapes 4 × L, 2 × L/2, 1 × L/4 and 1 × L/8. Unlike `ResidualStripNet`, it looks across the band with
    3×3 convolutions before it brings it to width one. The number of the band enters as a learned embedding of each
    position along it.

    The length of a band is the last axis of what the convolutions see: kernels on CPUs fill their registers along it,
    and those of the first stage are 2.5 times as fast, forward and backward. Where a band is one pixel wide they are
    matrix products, and it gets there without padding across: PyTorch 2.14's bfloat16 kernel for the padded convolution
    (3×3, stride 2, on width 2) reads memory that nobody wrote.

    Args:
        ablation: `Columns` or `Rows` of width 4, the only one it can be used with; L must be a multiple of 8.
        widths: channels of the four stages. blocks: residual blocks of each.
    """

    sees = "a band network sees columns or rows"
    scores_apart = True

    def __init__(
        self,
        ablation: Ablation,
        *,
        image_size: tuple[int, int] = (32, 32),
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 128, 256, 512),
        blocks: Sequence[int] = (1, 2, 2, 1),
    ) -> None:
        super().__init__(ablation, image_size, in_channels)
        if self.axis.size != 4 or self.length % 8:
            raise InvalidInput(
                f"ablation is {ablation} on {image_size[0]}x{image_size[1]} pixels, but a band network sees bands of "
                "width 4 and a length that 8 divides; use residual-strip"
            )
        if len(widths) != 4 or len(blocks) != 4 or min(*widths, *blocks) < 1:
            raise InvalidInput(f"widths is {widths} and blocks {blocks}; give four numbers of each, all at least 1")
        first, second, third, fourth = widths
        self.embedding = nn.Parameter(torch.randn(self.axis.count, first, self.length) * 0.1)
        self.stem = nn.Conv2d(2 * in_channels, first, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(first)
        self.stages = nn.Sequential(
            *(_Block(_Around(first, first), _Around(first, first)) for _ in range(blocks[0])),
            _Block(_Around(first, second, 2), _Around(second, second), _Halved(first, second)),
            *(_Block(_Around(second, second), _Around(second, second)) for _ in range(blocks[1] - 1)),
            _Block(_Across(second, third), _Along(third, third), _Squeezed(second, third)),
            *(_Block(_Along(third, third), _Along(third, third)) for _ in range(blocks[2] - 1)),
            _Block(_Along(third, fourth, 2), _Along(fourth, fourth), _HalvedLine(third, fourth)),
            *(_Block(_Along(fourth, fourth), _Along(fourth, fourth)) for _ in range(blocks[3] - 1)),
        )
        self.head = nn.Linear(fourth, num_classes)

    def score_some(self, x: Float[Tensor, "B C H W"], index: Int[Tensor, "B n"]) -> Float[Tensor, "B n K"]:
        x, pixel = self.upright(x).transpose(2, 3), self.pixels(index)
        seen = x.gather(2, pixel.flatten(1)[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
        bands = seen.unflatten(2, pixel.shape[1:]).transpose(1, 2).flatten(0, 1)
        return self._score(bands, index.flatten()).unflatten(0, index.shape)

    def _score(self, bands: Float[Tensor, "M C 4 L"], index: Int[Tensor, " M"]) -> Float[Tensor, "M K"]:
        x = self.stem(complemented(bands))
        x = x + self.embedding.to(x.dtype)[index][:, :, None]
        return self.head(self.stages(self.norm(x).relu()).mean(dim=1))


class _Block(nn.Module):
    """relu(shortcut(x) + second(relu(first(x))))."""

    def __init__(self, first: nn.Module, second: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.second, self.shortcut = first, second, shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return (self.second(self.first(x).relu()) + self.shortcut(x)).relu()


class _Around(nn.Sequential):
    """A 3×3 convolution, normalised."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs))


class _Across(nn.Module):
    """A convolution over both pixels of the width and three along it, at every other one, as one matrix product,
    normalised: [M,C,2,L] to [M,L/2,O].
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(6 * inputs, outputs, bias=False), nn.BatchNorm1d(outputs)

    def forward(self, x: Float[Tensor, "M C 2 L"]) -> Float[Tensor, "M l O"]:
        around = functional.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1))
        seen = [around[:, i, j : j + x.shape[3] : 2] for i in range(2) for j in range(3)]
        return _normalised(self.norm, self.linear(torch.cat(seen, dim=2)))


class _Halved(nn.Sequential):
    """Means of 2×2 pixels, mapped to other channels and normalised."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.AvgPool2d(2), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


class _Squeezed(nn.Module):
    """Means of 2×2 pixels of an image of width two, mapped to other channels and normalised: [M,L/2,O]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs)

    def forward(self, x: Float[Tensor, "M C 2 L"]) -> Float[Tensor, "M l O"]:
        means = functional.avg_pool2d(x, 2).permute(0, 2, 3, 1).flatten(1, 2)
        return _normalised(self.norm, self.linear(means))


class _Along(nn.Module):
    """A convolution of three pixels along a line, as one matrix product, normalised."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.linear, self.norm = nn.Linear(3 * inputs, outputs, bias=False), nn.BatchNorm1d(outputs)

    def forward(self, x: Float[Tensor, "M L C"]) -> Float[Tensor, "M l O"]:
        around = functional.pad(x, (0, 0, 1, 1))
        seen = [around[:, i : i + x.shape[1] : self.stride] for i in range(3)]
        return _normalised(self.norm, self.linear(torch.cat(seen, dim=2)))


class _HalvedLine(nn.Module):
    """Means of two pixels of a line, mapped to other channels and normalised."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs)

    def forward(self, x: Float[Tensor, "M L C"]) -> Float[Tensor, "M l O"]:
        return _normalised(self.norm, self.linear(x.unflatten(1, (-1, 2)).mean(dim=2)))


def _normalised(norm: nn.BatchNorm1d, x: Float[Tensor, "M L C"]) -> Float[Tensor, "M L C"]:
    return norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])
