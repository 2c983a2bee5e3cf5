"""Small classifiers whose decisions a test can follow, and the brute-force truth about them."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import combinations_with_replacement, product

import torch
from torch import Tensor, nn

from attacks import Ensemble, FromART, PatchAttack, Proposal, judge, parse_attacks
from attacks.base import Outcome
from attacks.registry import KNOWN
from robustpatch.ablations.base import Ablation
from robustpatch.ablations.kinds import Columns
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.networks import StripNet
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import TopOne, Voting


class Level(nn.Module):
    """The class whose level, k / (K - 1), is nearest to the brightest kept pixel: with two classes, 1 above one half.

    A patch that covers a kept pixel can raise the class of its ablation, and gradients tell it how.
    """

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.register_buffer("levels", torch.linspace(0, 1, classes))

    def forward(self, encoded: Tensor) -> Tensor:
        kept = encoded[:, 0].flatten(1).amax(dim=1)
        return -8 * (kept[:, None] - self.levels) ** 2


class Lookup(nn.Module):
    """An arbitrary function of the binarised encoded image: random logits from a table, one class the more likely.

    Decisions depend on nothing but which pixels exceed one half, so that patches of zeros and ones are all patches.
    """

    def __init__(self, seed: int, inputs: int, classes: int, favour: float = 3.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("factors", torch.randint(1, 10**6, (inputs,), generator=generator))
        table = torch.randn(997, classes, generator=generator) * 2
        table[:, int(torch.randint(classes, (1,), generator=generator))] += favour
        self.register_buffer("table", table)

    def forward(self, encoded: Tensor) -> Tensor:
        bits = (encoded.flatten(1) > 0.5).long()
        return self.table[(bits * self.factors).sum(dim=1) % len(self.table)] + 0 * encoded.flatten(1).sum(1)[:, None]


class Plain(nn.Module):
    """An undefended linear classifier."""

    def __init__(self, pixels: int, classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        weight = torch.randn(classes, pixels, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


class Counting(nn.Module):
    """Counts the images that reach the network, and those that a gradient comes back for."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.rows = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x) * (2 if torch.is_grad_enabled() and x.requires_grad else 1)
        return self.inner(x)


def smoothed(
    base: nn.Module, ablation: Ablation, classes: int, voting: Voting | None = None, **options
) -> SmoothedClassifier:
    """In evaluation mode; scores equal between runs but for rounding, hence the small guard."""
    return SmoothedClassifier(base, ablation, num_classes=classes, voting=voting or TopOne(1e-6), **options).eval()


def strip(size: tuple[int, int], ablation: Ablation | None = None, classes: int = 3) -> SmoothedClassifier:
    """An untrained one-pass classifier whose votes differ between bands and move with the image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = StripNet(ablation or Columns(2), image_size=size, num_classes=classes, widths=(8, 8), hidden=8).eval()
        with torch.no_grad():
            net.head[-1].weight *= 20
    return SmoothedClassifier(net, net.ablation, num_classes=classes, voting=TopOne()).eval()


def images(batch: int, size: tuple[int, int], channels: int = 1, seed: int = 0, binary: bool = False) -> Tensor:
    x = torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(seed))
    return (x > 0.5).float() if binary else x


def worlds(x: Tensor, threat: PatchThreat) -> Tensor:
    """Every image [C,H,W] that the threat can make of `x` [C,H,W] with zeros and ones, pixel by pixel."""
    channels, height, width = x.shape
    corners = list(product(range(height - threat.height + 1), range(width - threat.width + 1)))
    found = []
    for site in combinations_with_replacement(corners, threat.count):
        pixels = sorted(
            {
                (c, r + i, k + j)
                for r, k in site
                for c in range(channels)
                for i in range(threat.height)
                for j in range(threat.width)
            }
        )
        channel, row, column = torch.tensor(pixels).T
        contents = torch.tensor(list(product((0.0, 1.0), repeat=len(pixels))))
        images = x.expand(len(contents), -1, -1, -1).clone()
        images[:, channel, row, column] = contents
        found.append(images)
    return torch.cat(found)


def flipped(model: nn.Module, x: Tensor, threat: PatchThreat) -> Tensor:
    """Whether some patch of zeros and ones changes the prediction of each image [B]."""
    clean = model.predict(x)
    return torch.stack([(model.predict(worlds(image, threat)) != clean[i]).any() for i, image in enumerate(x)])


def labels(model: nn.Module, x: Tensor) -> Tensor:
    """The predictions of a classifier, or the argmax of a plain module."""
    return model.predict(x) if hasattr(model, "predict") else model(x).argmax(dim=1)


def run(
    attack: PatchAttack, model: nn.Module, x: Tensor, threat: PatchThreat, y: Tensor | None = None, seed: int = 0
) -> Proposal:
    """The attack's proposal against what the model predicts, or these labels."""
    y = labels(model, x) if y is None else y
    return attack(model, x, y, threat, generator=torch.Generator().manual_seed(seed))


def judged(
    attack: PatchAttack, model: nn.Module, x: Tensor, threat: PatchThreat, y: Tensor | None = None, seed: int = 0
) -> tuple[Proposal, Outcome]:
    """The same, and what the judge finds of it."""
    y = labels(model, x) if y is None else y
    proposal = run(attack, model, x, threat, y, seed)
    return proposal, judge(model, x, y, threat, proposal)


def registered(**numbers: int) -> dict[str, PatchAttack]:
    """Every attack of the registry, its numbers of these names (`steps`, `tries`, …) replaced where it has them."""
    return {name: _with(parse_attacks(name)[0], numbers) for name in KNOWN}


def _with(attack: PatchAttack, numbers: dict[str, int]) -> PatchAttack:
    if isinstance(attack, Ensemble):
        return replace(attack, members=tuple(_with(member, numbers) for member in attack.members))
    if isinstance(attack, FromART) and "steps" in numbers:
        options = {**dict(attack.build.options), "max_iter": numbers["steps"]}
        attack = replace(attack, build=replace(attack.build, options=tuple(options.items())))
    return replace(attack, **{field.name: numbers[field.name] for field in fields(attack) if field.name in numbers})
