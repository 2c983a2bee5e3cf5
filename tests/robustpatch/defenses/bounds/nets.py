"""Small networks that the bounds are held against, and the ways to ask for those."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustpatch.defenses.bounds import Box, Graph, Traced, bounds
from tests import toys

CHANNELS, SIZE = 2, (7, 6)


def graph_of(network: nn.Module, x: Tensor) -> Graph:
    return Traced().of(network, x)


@torch.no_grad()
def ends_of(network: nn.Module, lower: Tensor, upper: Tensor) -> Box:
    """The outputs' ends over a box, infinite where some bound on the way was."""
    (least, most), sound = bounds(graph_of(network, lower), Box(lower, upper))
    infinite = ~sound[:, None]
    return Box(least.masked_fill(infinite, -torch.inf), most.masked_fill(infinite, torch.inf))


class Of(nn.Module):
    """A function of images and parts, with those parts as its layers."""

    def __init__(self, function, **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.function(self, x)


def norm(features: int, kind=nn.BatchNorm2d) -> nn.Module:
    """Batch norm whose scales have both signs."""
    layer = kind(features).eval()
    layer.running_mean.normal_(generator=torch.Generator().manual_seed(3))
    layer.running_var.uniform_(0.1, 2, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([-1.5, 1.0, -0.3, 2.0])[torch.arange(features) % 4])
        layer.bias.fill_(0.1)
    return layer


def _residual(self, x):
    out = self.second(F.relu(self.norm(self.first(x)), inplace=True))
    out += x
    return out.relu_()


def _shuffled(_, x):
    first, second = x.flip(3).roll(1, dims=2).split(1, dim=1)
    return torch.cat([F.pad(second, (1, 0, 0, 1), value=0.3), F.pad(first, (0, 1, 1, 0), mode="replicate")], dim=1)


COLOURS = torch.tensor([-0.5, 0.25]).view(1, 2, 1, 1)
LAYERS = {
    "convolution": lambda: nn.Conv2d(2, 2, 3, padding=1),
    "stride": lambda: nn.Conv2d(2, 4, (2, 3), stride=(2, 1), padding=(0, 2)),
    "dilation": lambda: nn.Conv2d(2, 2, 2, dilation=2, padding="same", bias=False),
    "groups": lambda: nn.Conv2d(2, 4, 3, groups=2, padding=1),
    "circular": lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
    "reflect": lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
    "transposed": lambda: nn.ConvTranspose2d(2, 2, 2, stride=2, padding=1),
    "average": lambda: nn.AvgPool2d(2, stride=1, padding=1, count_include_pad=False),
    "divided": lambda: nn.AvgPool2d(2, divisor_override=-3),
    "adaptive": lambda: nn.AdaptiveAvgPool2d((2, 3)),
    "maximum": lambda: nn.MaxPool2d(3, stride=2, padding=1),
    "adaptive maximum": lambda: nn.AdaptiveMaxPool2d(2),
    "norm": lambda: norm(2),
    "leaky": lambda: nn.LeakyReLU(0.2, inplace=True),
    "parametric": lambda: nn.PReLU(2, -0.7),
    "clipped": lambda: nn.Hardtanh(-0.3, 0.4),
    "dropped": lambda: nn.Sequential(nn.Dropout(0.5), nn.Identity(), nn.ReLU(inplace=True)),
    "residual": lambda: Of(_residual, first=nn.Conv2d(2, 2, 3, padding=1), norm=norm(2), second=nn.Conv2d(2, 2, 1)),
    "shuffled": lambda: Of(_shuffled),
    "normalised": lambda: Of(lambda _, x: (x - COLOURS.to(x)) / 0.3),
    "negated": lambda: Of(lambda _, x: 1 - x * COLOURS.to(x) / COLOURS.to(x).neg() * -0.7),
    "squared": lambda: Of(lambda _, x: x * (0.5 - x) + (-x).abs()),
    "clamped": lambda: Of(
        lambda _, x: torch.maximum(x.clamp(-0.5, 0.9), x.mean((2, 3), keepdim=True)) - x.clamp(min=0)
    ),
    "gated": lambda: Of(lambda _, x: x.amax(dim=1, keepdim=True).expand(-1, 2, -1, -1) * x.sum(dim=3, keepdim=True)),
    "turned": lambda: Of(lambda _, x: x.permute(0, 1, 3, 2)[:, :, 1:].unsqueeze(4).squeeze(4)),
    "shared": lambda: (lambda layer: nn.Sequential(layer, nn.ReLU(), layer))(nn.Conv2d(2, 2, 3, padding=1)),
}


def chain(names: list[str], seed: int) -> nn.Sequential:
    """Those layers one after the other, as far as each takes what the one before gives, and a linear one."""

    def build() -> nn.Sequential:
        layers, x = [], torch.zeros(1, CHANNELS, *SIZE)
        for name in names:
            layer = LAYERS[name]().eval()
            try:
                x = layer(x.clone())
            except (RuntimeError, ValueError):
                continue
            layers.append(layer)
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(x.numel(), 3))

    with torch.no_grad():
        return toys.seeded(build, seed)
