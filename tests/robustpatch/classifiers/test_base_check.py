"""PITFALLS 13 and 21: each image that a base is tested on, all that its surroundings are replaced by, its company."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.kinds import Columns
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from tests import toys

ONE = PatchThreat(1, 1)


def shows(kind: str, x: Tensor, where: Tensor) -> Tensor:
    """Whether the pixels of each image [M,1,H,W] in `where` are all black, white or grey, or noise [M]."""
    low = x.where(where, torch.inf).flatten(1).amin(dim=1)
    high = x.where(where, -torch.inf).flatten(1).amax(dim=1)
    if kind == "noise":
        return high - low > 0.1
    level = {"black": 0.0, "grey": 0.5, "white": 1.0}[kind]
    return (low == level) & (high == level)


def logits(fires: Tensor) -> Tensor:
    """Other scores [M,4] where it fires, far beyond any guard."""
    return 4 * torch.nn.functional.one_hot(fires.long(), toys.CLASSES).float()


class Leaking(nn.Module):
    """Sees its band alone, except where that shows `band` and all beside it `around`."""

    def __init__(self, ablation: Ablation, band: str, around: str) -> None:
        super().__init__()
        self.ablation, self.band, self.around = ablation, band, around

    def score_all(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        index = torch.arange(self.ablation.count(*x.shape[2:])) if index is None else index
        index = index.expand(len(x), -1)
        image = torch.arange(len(x))[:, None].expand_as(index)
        return self._pairs(x, image.flatten(), index.flatten()).unflatten(0, index.shape)

    def _pairs(self, x: Tensor, image: Tensor, index: Tensor) -> Tensor:
        kept = self.ablation.masks(*x.shape[2:], index)[:, None]
        return logits(shows(self.band, x[image], kept) & shows(self.around, x[image], ~kept))


class LeakingPairs(Leaking):
    """The same, asked for pairs."""

    def score_pairs(self, x: Tensor, image: Tensor, index: Tensor) -> Tensor:
        return self._pairs(x, image, index)


KINDS = ("black", "grey", "white", "noise")
FILLS = ("black", "white", "noise")


@pytest.mark.parametrize(("kind", "width"), [(Leaking, 8), (Leaking, 80), (LeakingPairs, 8)])
@pytest.mark.parametrize(("band", "around"), [(band, fill) for band in KINDS for fill in FILLS if fill != band])
def test_a_leak_is_found_under_each_surroundings_on_each_image(kind, width, band, around):
    """A base that leaks for one kind of band under one kind of surroundings alone, which no other test image or fill
    shows: the image itself (grey), black, white and noise; surroundings black, white and noise.
    """
    x, ablation = torch.full((2, 1, 2, width), 0.5), Columns(2)
    with pytest.raises(InvalidInput, match=r"outside the band replaced by .*: the base sees more than its band"):
        toys.smoothed(kind(ablation, band, around), ablation).certify(x, ONE)


class Neighboring(nn.Module):
    """Other scores where a view before this one in the batch, or behind it, shows white, or noise."""

    def __init__(self, kind: str, before: bool) -> None:
        super().__init__()
        self.kind, self.before = kind, before

    def forward(self, x: Tensor) -> Tensor:
        view = x[:, :1]  # what is hidden is black
        seen = shows(self.kind, view, (x[:, :1] + x[:, 1:2]) > 0)
        ordered = seen if self.before else seen.flip(0)
        passed = ordered.long().cumsum(dim=0) > 0
        return logits(passed if self.before else passed.flip(0))


@pytest.mark.parametrize(("kind", "before"), [("noise", True), ("white", False)])
def test_company_couples_whatever_it_shows(kind, before):
    """Nothing but noise in front of an image, or white behind it, tells that the base couples images."""
    model = toys.smoothed(Neighboring(kind, before))
    with pytest.raises(InvalidInput, match="alone, beside others and twice"):
        model.certify(torch.full((2, 1, *toys.SIZE), 0.5), ONE)


class Drifting(nn.Module):
    """Couples no images, but answers a batch of a size that it has met before in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.met: Counter[int] = Counter()

    def forward(self, x: Tensor) -> Tensor:
        self.met[len(x)] += 1
        return logits(torch.full((len(x),), self.met[len(x)] > 1))


def test_the_same_question_twice():
    """Its first answers, to one image or to several, all agree."""
    model, x = toys.smoothed(Drifting()), toys.images(2)
    assert torch.equal(model.scores(x)[0], toys.smoothed(Drifting()).scores(x[:1])[0])
    with pytest.raises(InvalidInput, match="alone, beside others and twice"):
        toys.smoothed(Drifting()).certify(x, ONE)


class Placed(nn.Module):
    """Answers the first view of a batch, or the last, in another way than all others."""

    def __init__(self, position: int) -> None:
        super().__init__()
        self.position = position

    def forward(self, x: Tensor) -> Tensor:
        fires = torch.zeros(len(x), dtype=torch.bool)
        fires[self.position] = True
        return logits(fires)


@pytest.mark.parametrize("position", [0, -1])
def test_a_chunk_that_divides_the_ablations_hides_nothing(position):
    """Eight ablations in chunks of eight are always the same company: asked again without the first, and it alone."""
    with pytest.raises(InvalidInput, match="other ablations beside the same one: the base couples them"):
        toys.smoothed(Placed(position), chunk=8).certify(toys.images(2), ONE)
