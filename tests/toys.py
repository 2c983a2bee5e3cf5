"""Small base classifiers: honest ones, and each kind that a certifier must refuse."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.kinds import Blocks, Columns, Rows
from robustpatch.ablations.union import Union
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.networks import StripNet, UnionNet, build, one_pass_name
from robustpatch.voting.rules import Threshold

SIZE = (6, 8)  # of the toy images: height × width
CLASSES = 4


def images(batch: int = 3, channels: int = 1, size: tuple[int, int] = SIZE, seed: int = 7) -> Tensor:
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


def seeded(build, seed: int = 0) -> nn.Module:
    """A module with the same weights every time, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval()


def linear(channels: int = 2, size: tuple[int, int] = SIZE, classes: int = CLASSES, scale: float = 2.0) -> nn.Module:
    """A plain base: one linear map of the encoded image, with logits far enough apart to vote."""
    base = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(channels * size[0] * size[1], classes)))
    with torch.no_grad():
        base[1].weight *= scale
    return base


def strip(
    ablation=None,
    size: tuple[int, int] = SIZE,
    classes: int = CLASSES,
    kind: type[StripNet] | None = None,
    in_channels: int = 1,
    seed: int = 0,
) -> StripNet:
    """A small one-pass base whose norms and embedding do something."""
    ablation = ablation or Columns(2)
    net = seeded(
        lambda: (kind or StripNet)(
            ablation, image_size=size, num_classes=classes, widths=[4, 4], hidden=8, in_channels=in_channels
        ),
        seed,
    )
    generator = torch.Generator().manual_seed(1)
    for norm in net.norms:
        norm.running_mean.copy_(0.2 * torch.randn(norm.num_features, generator=generator))
        norm.running_var.copy_(0.5 + torch.rand(norm.num_features, generator=generator))
        norm.bias.data.fill_(2.0)  # keeps the rectifiers open: a closed one would hide what the network sees
    with torch.no_grad():  # logits around zero, far enough apart to vote for different classes
        net.head[-1].weight *= 8
        net.head[-1].bias -= net.eval().score_all(images(8, in_channels, size)).mean(dim=(0, 1))
    return net


def one_pass(
    ablation: Ablation, size: tuple[int, int] = SIZE, in_channels: int = 1, classes: int = CLASSES, seed: int = 0
) -> nn.Module:
    """The one-pass base for any ablation, as small and as awake as `strip`."""
    if isinstance(ablation, Columns | Rows):
        return strip(ablation, size, classes, in_channels=in_channels, seed=seed)
    if isinstance(ablation, Union):
        return UnionNet(ablation, [one_pass(part, size, in_channels, classes, seed) for part in ablation.parts])
    options = {"widths": [6, 5]} if isinstance(ablation, Blocks) else {"features": 8, "hidden": 6}
    return _awake(one_pass_name(ablation), options, ablation, size, in_channels, classes, seed)


def residual_strip(
    ablation: Ablation, size: tuple[int, int] = SIZE, in_channels: int = 1, classes: int = CLASSES, seed: int = 0
) -> nn.Module:
    """`ResidualStripNet`, with a shortcut of each kind, as small and as awake as `strip`."""
    options = {"widths": [4, 6], "blocks": 2}
    return _awake("residual-strip", options, ablation, size, in_channels, classes, seed, scale=2.0)  # its blocks add up


BANDS = [
    (Columns(4), (8, 9)),
    (Columns(4), (16, 7)),
    (Columns(4, 3), (8, 10)),
    (Rows(4), (9, 8)),
    (Rows(4, 2), (7, 16)),
]
"""Ablations and sizes of images that `band` is built for."""


def band(
    ablation: Ablation, size: tuple[int, int], in_channels: int = 1, classes: int = CLASSES, seed: int = 0
) -> nn.Module:
    """`BandNet` with a block of each kind, as small and as awake as `strip`."""
    options = {"widths": [4, 5, 6, 6], "blocks": [1, 2, 2, 1]}
    return _awake("band", options, ablation, size, in_channels, classes, seed, scale=2.0)


def conv_block(
    ablation: Ablation, size: tuple[int, int] = SIZE, in_channels: int = 1, classes: int = CLASSES, seed: int = 0
) -> nn.Module:
    """`ConvBlockNet` with a 3×3 convolution where the block has room for one, as small and as awake as `strip`."""
    options = {"widths": [4, 6] if isinstance(ablation, Blocks) and ablation.height > 2 else [6], "hidden": 5}
    return _awake("conv-block", options, ablation, size, in_channels, classes, seed, scale=2.0)


def _awake(
    name: str,
    options: dict,
    ablation: Ablation,
    size: tuple[int, int],
    in_channels: int,
    classes: int,
    seed: int,
    scale: float = 8.0,
) -> nn.Module:
    net = seeded(
        lambda: build(
            name,
            ablation=ablation,
            image_shape=(in_channels, *size),
            num_classes=classes,
            encoding=None,
            options=options,
        ),
        seed,
    )
    generator = torch.Generator().manual_seed(1)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.running_mean.copy_(0.2 * torch.randn(norm.num_features, generator=generator))
            norm.running_var.copy_(0.5 + torch.rand(norm.num_features, generator=generator))
            norm.bias.data.fill_(2.0)
    with torch.no_grad():
        head: nn.Linear = net.head  # type: ignore[assignment]
        head.weight *= scale
        head.bias -= net(images(8, in_channels, size)).mean(dim=(0, 1))
    return net


def smoothed(
    base: nn.Module | None = None, ablation=None, voting=None, classes: int = CLASSES, **options
) -> SmoothedClassifier:
    """The toy classifier, in evaluation mode."""
    return SmoothedClassifier(
        base or linear(), ablation or Columns(2), num_classes=classes, voting=voting or Threshold(0.3), **options
    ).eval()


class Fixed(nn.Module):
    """The same logits whatever it sees: exact ties at will."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(logits))

    def forward(self, x: Tensor) -> Tensor:
        return self.values.expand(len(x), -1) + 0 * x.flatten(1).sum(dim=1, keepdim=True)


class Coupled(nn.Module):
    """Batch norm without running statistics: images in one chunk see each other, in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.base = nn.BatchNorm2d(2, track_running_stats=False), linear()

    def forward(self, x: Tensor) -> Tensor:
        return self.base(self.norm(x))


class Dropped(nn.Module):
    """Functional dropout that forgets `training`."""

    def __init__(self) -> None:
        super().__init__()
        self.base = linear()

    def forward(self, x: Tensor) -> Tensor:
        return self.base(nn.functional.dropout(x, 0.5, training=True))


class WideStrip(StripNet):
    """Claims its band and blurs across it first: sees one column more on either side."""

    def score_all(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        return super().score_all((x + x.roll(1, dims=3) + x.roll(-1, dims=3)) / 3, index)


class WideInOnePass(StripNet):
    """Honest where asked for single bands, too wide in the one pass that the votes come from."""

    def score_all(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        return super().score_all((x + x.roll(1, dims=3)) / 2 if index is None else x, index)
