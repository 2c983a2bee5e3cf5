"""Clipped BagNet (Zhang et al. 2020), with the certificate that compares with the clean runner-up alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evaluate.court.entry import Entry, Witness, claim, one_patch, sizes
from evaluate.court.local_features import features, windows
from evaluate.court.views import Base, beats_all, last_argmax


class ClippedBagNet:
    """Features clipped by tanh(0.05·x - 1), so that each lies in [-1, 1]; the largest mean wins. Certified where,
    without any window w, the sum for the winner is ahead of that of the second by at least 2·|w|.
    """

    def __init__(self, base: Base, num_classes: int) -> None:
        self.base, self.num_classes = base, num_classes

    def clipped(self, x: Tensor) -> Tensor:
        return torch.tanh(0.05 * features(self.base, x).double() - 1)

    def predict(self, x: Tensor) -> Tensor:
        return self.clipped(x).flatten(2).sum(dim=2).argmax(dim=1)

    def certify(self, x: Tensor, threat: Any) -> Any:
        local = self.clipped(x)
        sums, window = local.flatten(2).sum(dim=2), windows(one_patch(threat), local)
        first = last_argmax(sums)
        second = last_argmax(sums.scatter(1, first[:, None], -torch.inf))
        ahead = local[torch.arange(len(x)), first] - local[torch.arange(len(x)), second]
        rest = torch.where(window, 0.0, ahead[:, None]).flatten(2).sum(dim=2)
        return claim(first, (rest >= 2 * window.flatten(1).sum(dim=1)).all(dim=1))


class EveryRival(ClippedBagNet):
    """The same against every class, each with 1 in the whole window and the winner -1; summed as `predict` does."""

    def certify(self, x: Tensor, threat: Any) -> Any:
        local = self.clipped(x)
        prediction = local.flatten(2).sum(dim=2).argmax(dim=1)
        own = local[torch.arange(len(x)), prediction]
        certified = torch.ones(len(x), dtype=torch.bool)
        for window in windows(one_patch(threat), local):
            least = torch.where(window, -1.0, own).flatten(1).sum(dim=1)
            most = torch.where(window, 1.0, local).flatten(2).sum(dim=2)
            certified &= beats_all(least, most, prediction)
        return claim(prediction, certified)


def printed(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> ClippedBagNet:
    return ClippedBagNet(base, num_classes)


def repaired(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> EveryRival:
    return EveryRival(base, num_classes)


_SIZES = sizes("1x2x4/1x1", "1x2x5/1x1", "1x2x6/1x1", "1x2x7/1x1", "1x2x9/1x1", "1x3x8/1x1")

ENTRY = Entry(
    module="clipped_bagnet",
    title="Clipped BagNet with the clean runner-up (Zhang et al. 2020)",
    claim="No patch of that size changes the class with the largest mean.",
    fault="Only the class that is second in the clean image is compared. A third that is far behind in one window "
    "alone overtakes with a patch there; and a lead of exactly 2·|w| is certified, though a class of a lower number "
    "wins the tie.",
    repair="Every class is compared, at a tie by its number.",
    read="code of the PatchGuard authors: inspire-group/PatchGuard, utils/defense_utils.py (provable_clipping)",
    unknown="The paper's own code and proof: whether the comparison with the second alone is Zhang et al.'s.",
    adapted="Features are what the base says of every 2×2 window of pixels (BagNet: 33×33 and others), summed in "
    "float64.",
    printed=printed,
    repaired=repaired,
    sizes=_SIZES,
    witness=Witness(  # clipped: 1 for class 0 everywhere; 1 is behind by 1.35, 2 by 2 in the window, else by 0.97
        size=_SIZES[5],
        corner=(0, 1),
        clean=((999.0, 12.7, -999.0),) * 2 + ((999.0, 12.7, 20.6),) * 3,
        patched=((-999.0, -999.0, 999.0),) * 2,
    ),
)
