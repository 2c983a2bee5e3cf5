"""PatchGuard (Xiang et al. 2021), robust masking with a detection threshold, before and after its correction."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from evaluate.court.entry import Entry, Witness, claim, one_patch, sizes
from evaluate.court.local_features import features, windows
from evaluate.court.robust_masking import THRESHOLD, certified, exact, masked_sums, overlapping
from evaluate.court.views import Base, last_argmax


class PatchGuard:
    """Made for patches of `side` × `side`: local features clipped at 0; of each class the heaviest window is masked
    where it holds more than half of the class's sum; the largest rest wins, the highest class at a tie.
    """

    side, corrected = 1, False

    def __init__(self, base: Base, num_classes: int) -> None:
        self.base, self.num_classes = base, num_classes

    def seen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The features [B,K,F], and the windows [L,F] of those that a patch can change."""
        local = exact(features(self.base, x))
        return local.flatten(2), windows((self.side, self.side), local).flatten(1)

    def predict(self, x: Tensor) -> Tensor:
        return last_argmax(masked_sums(*self.seen(x), THRESHOLD))

    def certify(self, x: Tensor, threat: Any) -> Any:
        local, inside = self.seen(x)
        prediction, holds = certified(local, inside, overlapping(inside), THRESHOLD, self.corrected)
        return claim(prediction, holds & (max(one_patch(threat)) <= self.side))


class Corrected(PatchGuard):
    """The same with the lower bound of the class itself as its authors corrected it."""

    corrected = True


def printed(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> PatchGuard:
    return PatchGuard(base, num_classes)


def repaired(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> Corrected:
    return Corrected(base, num_classes)


_SIZES = sizes("1x2x5/1x1", "1x2x6/1x1", "1x2x7/1x1", "1x2x8/1x1")

ENTRY = Entry(
    module="patchguard",
    title="PatchGuard with a detection threshold, before and after its correction (Xiang et al. 2021)",
    claim="No patch of that size changes the class with the largest sum of features after masking.",
    fault="The class itself was thought to keep all features outside of the patch where no window holds more than "
    "the threshold. But a patch can vote for it, too, so that a window that overlaps with the patch is masked, and "
    "with it features that the patch does not reach. The main tables have a threshold of 0, where this makes no "
    "difference.",
    repair="Where no window is heavy enough, the heaviest that overlaps with the patch is taken off: the authors' "
    "correction of December 2021.",
    read="code: inspire-group/PatchGuard, utils/defense_utils.py of February 2021 (before), its README of April 2022 "
    "(that it was corrected), and the fork JiamingZeng/PatchGuard (after)",
    unknown="An earlier correction of August 2020, which the README names, too.",
    adapted="Features are what the base says of every 2×2 window of pixels, clipped to [0, 64] and rounded to 1/64, "
    "so that no rounding decides; threshold 0.5.",
    printed=printed,
    repaired=repaired,
    sizes=_SIZES,
    witness=Witness(
        size=_SIZES[4],
        corner=(0, 1),
        clean=((16.0, 0.0), (16.0, 0.0), (16.0, 7.25), (16.0, 7.25), (16.0, 7.25), (16.0, 7.25)),
        patched=((0.0, 28.0), (48.0, 0.0)),
    ),
)
