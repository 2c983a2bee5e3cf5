"""Certifiers with a bug each, and the images on which it shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.kinds import Columns, Rows
from robustpatch.ablations.touched import DenseTouched
from robustpatch.certificates.exact import Certificate, certify_votes
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.data.images import ImageSet
from robustpatch.threats.base import Threat
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import TopOne
from tests.attacks.toys import Level, flipped


def image_set(x: Tensor, labels: Tensor, classes: int) -> ImageSet:
    """Images [B,C,H,W] of values k/255 as the evaluator reads them."""
    names = tuple(map(str, range(classes)))
    return ImageSet("toy", "test", names, tuple(x.shape[1:]), labels, _bytes=(x * 255).round().to(torch.uint8))


def striped(width: int, height: int, levels: int = 2, across: bool = False) -> Tensor:
    """All images whose columns (rows, if `across`) are each of one of `levels` equally spaced shades."""
    length = height if across else width
    shades = torch.tensor(list(product(range(levels), repeat=length))) * (255 // (levels - 1)) / 255
    bands = shades[:, None, :, None] if across else shades[:, None, None, :]
    return bands.expand(-1, 1, height, width).contiguous()


class WrongCertify(SmoothedClassifier):
    """Certifies with the votes of the real classifier and a proof that is wrong."""

    proof: Callable[[SmoothedClassifier, Tensor, Threat], Certificate]

    def certify(self, x, threat, method="exact"):
        return type(self).proof(self, x, threat)


class NoWrap(Columns):
    """Bands as the model's, but cut off at the border when it comes to what a patch touches."""

    def touched(self, threat, height, width):
        first = torch.arange(0, width, self.stride)[:, None]
        pixel = torch.arange(width)
        kept = (pixel >= first) & (pixel < first + self.size)
        starts = torch.arange(width - threat.width + 1).repeat(height - threat.height + 1)
        return DenseTouched(torch.stack([kept[:, p : p + threat.width].any(dim=1) for p in starts.tolist()]))


def _by_geometry(wrong: Callable[[Ablation], Ablation]):
    """The exact proof for another ablation than the one that votes."""

    def proof(model, x, threat):
        return certify_votes(model.votes(x), wrong(model.ablation), threat, tuple(x.shape[2:]), guard=model.guard)

    return proof


def _by_margin(affected: Callable[[Ablation, PatchThreat, Tensor], int], runner_up: str = "all"):
    """n_c - n_j ≥ 2Δ + [j < c], with a Δ of one's own; `runner_up` "last": with one rival, the last of the best."""

    def proof(model, x, threat):
        votes = model.votes(x)
        counts = votes.cast.sum(dim=1)
        prediction = model.predict(x)
        number = torch.arange(counts.shape[1])
        delta = affected(model.ablation, threat, x)
        margins = counts.gather(1, prediction[:, None]) - counts - 2 * delta - (number < prediction[:, None]).long()
        own = number == prediction[:, None]
        if runner_up == "last":
            best = counts.masked_fill(own, -1)
            last = best.shape[1] - 1 - best.flip(1).argmax(dim=1)
            margin = margins.gather(1, last[:, None])[:, 0]
        else:
            margin = margins.masked_fill(own, 10**6).amin(dim=1)
        close = votes.close.sum(dim=(1, 2))
        return Certificate(prediction, margin >= 0, margin, None, threat, "margin", model.guard, close)

    return proof


def _swapped(model, x, threat):
    turned = PatchThreat(threat.width, threat.height)
    return replace(SmoothedClassifier.certify(model, x, turned), threat=threat)


def _true_delta(ablation, threat, x):
    return ablation.affected(threat, *x.shape[2:])


def _no_gap(ablation, threat, x):
    """ceil((m + s - 1) / stride), as if the stride divided the width."""
    return -(-(threat.width + ablation.size - 1) // ablation.stride)


def _one_less(ablation, threat, x):
    return _true_delta(ablation, threat, x) - 1


@dataclass(frozen=True)
class Plant:
    """A bug, the ablation and threat under which it matters, and the shades of grey that the votes tell apart."""

    proof: Callable
    ablation: Ablation
    threat: PatchThreat
    size: tuple[int, int]
    room: tuple[int, int]  # the smallest in which a black image is certified
    classes: int = 2

    def sound(self) -> SmoothedClassifier:
        return self._build(SmoothedClassifier)

    def broken(self) -> SmoothedClassifier:
        return self._build(type("Planted", (WrongCertify,), {"proof": staticmethod(self.proof)}))

    def _build(self, kind: type[SmoothedClassifier]) -> SmoothedClassifier:
        base = Level(self.classes)
        return kind(base, self.ablation, num_classes=self.classes, voting=TopOne(1e-6)).eval()

    def candidates(self) -> Tensor:
        height, width = self.size
        return striped(width, height, self.classes, across=isinstance(self.ablation, Rows))


PLANTS = {
    "delta one less": Plant(
        _by_geometry(lambda a: replace(a, size=a.size - 1)), Columns(2), PatchThreat(2, 2), (2, 8), (2, 6)
    ),
    "delta one less, rows": Plant(
        _by_geometry(lambda a: replace(a, size=a.size - 1)), Rows(2), PatchThreat(2, 2), (8, 2), (6, 2)
    ),
    "delta one less, margin": Plant(_by_margin(_one_less), Columns(2), PatchThreat(2, 2), (2, 5), (2, 6)),
    "no wrap": Plant(
        _by_geometry(lambda a: NoWrap(a.size, a.stride)), Columns(4, 4), PatchThreat(1, 1), (1, 10), (1, 14)
    ),
    "runner-up tie": Plant(_by_margin(_true_delta, "last"), Columns(1), PatchThreat(1, 1), (1, 5), (1, 2), 4),
    "height and width swapped": Plant(_swapped, Columns(1), PatchThreat(2, 6), (6, 9), (6, 12)),
    "width and height swapped": Plant(_swapped, Rows(1), PatchThreat(6, 2), (9, 6), (12, 6)),
    "stride gap": Plant(_by_margin(_no_gap), Columns(3, 3), PatchThreat(2, 1), (2, 8), (2, 11)),
}


def exposing(plant: Plant) -> Tensor:
    """Images that the bug certifies and a patch really flips."""
    sound, x = plant.sound(), plant.candidates()
    wrong = x[plant.broken().certify(x, plant.threat).certified & ~sound.certify(x, plant.threat).certified]
    assert len(wrong) > 0
    if plant.threat.height * plant.threat.width > 4:  # too many patches to try: black images, where all can flip
        return wrong[:1]
    return wrong[flipped(sound, wrong[:50], plant.threat).nonzero()[:3, 0]]


class WideView(nn.Module):
    """A one-pass base that sees one column more on either side than the band it claims."""

    def __init__(self, ablation: Columns, reach: int = 1) -> None:
        super().__init__()
        self.ablation, self.reach = ablation, reach

    def score_all(self, x, index=None):
        band = torch.arange(x.shape[3])[:, None] + torch.arange(-self.reach, self.ablation.size + self.reach)
        seen = x.amax(dim=(1, 2))[:, band % x.shape[3]].amax(dim=2)
        logits = 8 * torch.stack([0.5 - seen, seen - 0.5], dim=2)
        if index is None:
            return logits
        index = index.expand(len(x), -1) if index.ndim == 1 else index
        return logits.gather(1, index[..., None].expand(-1, -1, 2))


def wide(reach: int = 1) -> SmoothedClassifier:
    """Certifies for bands of two columns what its base reads from `reach` more on either side: honest for 0."""
    ablation = Columns(2)
    return SmoothedClassifier(WideView(ablation, reach), ablation, num_classes=2, voting=TopOne(1e-6)).eval()


class Noisy(nn.Module):
    """`Level` behind a layer that couples images or draws random numbers."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.level = layer, Level(2)

    def forward(self, encoded):
        return self.level(self.layer(encoded))
