"""PatchGuard without clipping from above: what is left of a class is its sum less its heaviest window, in floats."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evaluate.court.entry import Entry, Witness, claim, one_patch, sizes
from evaluate.court.local_features import features, windows
from evaluate.court.views import Base, beats_all, last_argmax


class Subtracted:
    """Made for patches of `side` × `side`: local logits of at least 0; from the sum of each class that of its heaviest
    window is taken; the largest rest wins, the highest class at a tie (threshold 0, as in the main tables).

    Certified where at every window the rest of the class, less its heaviest window, beats the rest of every other.
    """

    side = 1

    def __init__(self, base: Base, num_classes: int) -> None:
        self.base, self.num_classes = base, num_classes

    def seen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The features [B,K,F], and the windows [L,F] of those that a patch can change."""
        local = features(self.base, x).clamp(min=0)
        return local.flatten(2), windows((self.side, self.side), local).flatten(1)

    def rest(self, local: Tensor, windows: Tensor) -> Tensor:
        """The sum that each class keeps outside of its heaviest window [B,K]."""
        inside = torch.where(windows, local[:, :, None], 0.0).sum(dim=3)
        return local.sum(dim=2) - inside.amax(dim=2)

    def predict(self, x: Tensor) -> Tensor:
        return last_argmax(self.rest(*self.seen(x)))

    def certify(self, x: Tensor, threat: Any) -> Any:
        local, inside = self.seen(x)
        prediction = last_argmax(self.rest(local, inside))
        own = local[torch.arange(len(x)), prediction]
        holds = torch.full((len(x),), max(one_patch(threat)) <= self.side)
        for window in inside:
            least = self.rest(torch.where(window, 0.0, own)[:, None], inside)[:, 0]
            holds &= beats_all(least, torch.where(window, 0.0, local).sum(dim=2), prediction, lower_wins=False)
        return claim(prediction, holds)


class SummedRest(Subtracted):
    """The same with what lies outside of each window added up: a patch in it has no part in that sum."""

    def rest(self, local: Tensor, windows: Tensor) -> Tensor:
        return torch.where(windows, 0.0, local[:, :, None]).sum(dim=3).amin(dim=2)


def printed(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> Subtracted:
    return Subtracted(base, num_classes)


def repaired(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> SummedRest:
    return SummedRest(base, num_classes)


_SIZES = sizes("1x2x5/1x1", "1x2x6/1x1", "1x2x7/1x1", "1x2x8/1x1", "1x3x8/1x1")

ENTRY = Entry(
    module="patchguard_sums",
    title="PatchGuard on logits that nothing bounds (Xiang et al. 2021, threshold 0)",
    claim="No patch of that size changes the class with the largest sum of features after masking.",
    fault="A heavy window is taken from the sum that it is part of. If a patch makes its features large enough, the "
    "others drown in rounding, and the class keeps nothing: 2^24 times as large is enough in float32.",
    repair="What lies outside of the window is added up.",
    read="code: inspire-group/PatchGuard, utils/defense_utils.py (masking_defense, without an upper clipping value)",
    adapted="Features are what the base says of every 2×2 window of pixels. A network whose logits stay small is not "
    "concerned: it is the proof that does not ask for that.",
    printed=printed,
    repaired=repaired,
    sizes=_SIZES,
    witness=Witness(_SIZES[2], (0, 1), ((30.0, 0.0),) * 5, ((1e10, 0.0), (0.0, 0.0))),
)
