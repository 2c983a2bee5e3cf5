"""PatchGuard++ (Xiang & Mittal 2021): features are masked window by window, an alert where that changes the class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evaluate.court.entry import Entry, Witness, claim, one_patch, sizes
from evaluate.court.local_features import features, windows
from evaluate.court.views import Base, last_argmax


class PatchGuardPlus:
    """Made for patches of `side` × `side`: the mean of local logits predicts; each window of features is masked in
    turn, its sum taken from the mean. Another class with a softmax above `sure` is an alert. Certified where every
    masked mean has the clean class with at least `sure`.
    """

    side, sure = 1, 0.8

    def __init__(self, base: Base, num_classes: int) -> None:
        self.base, self.num_classes = base, num_classes

    def masked(self, local: Tensor) -> Tensor:
        """The mean of the features without each window [B,L,K]."""
        inside = windows((self.side, self.side), local)[:, None]
        taken = torch.where(inside, local[:, None], 0.0).flatten(3).mean(dim=3)
        return local.flatten(2).mean(dim=2)[:, None] - taken

    def seen(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The class of all features [B], then class and confidence without each window [B,L]."""
        local = features(self.base, x)
        confidence, said = self.masked(local).softmax(dim=2).max(dim=2)
        return last_argmax(local.flatten(2).mean(dim=2)), said, confidence

    def alarming(self, confidence: Tensor) -> Tensor:
        return confidence > self.sure

    def predict(self, x: Tensor) -> Tensor:
        whole, said, confidence = self.seen(x)
        alert = ((said != whole[:, None]) & self.alarming(confidence)).any(dim=1)
        return torch.where(alert, -1, whole)

    def certify(self, x: Tensor, threat: Any) -> Any:
        whole, said, confidence = self.seen(x)
        fits = max(one_patch(threat)) <= self.side
        return claim(whole, ((said == whole[:, None]) & (confidence >= self.sure)).all(dim=1) & fits)


class SummedRest(PatchGuardPlus):
    """The same with what is left added up, in which a patch has no part, and an alert at exactly `sure`, too."""

    def masked(self, local: Tensor) -> Tensor:
        inside = windows((self.side, self.side), local)[:, None]
        return torch.where(inside, 0.0, local[:, None]).flatten(3).mean(dim=3)

    def alarming(self, confidence: Tensor) -> Tensor:
        return confidence >= self.sure


def printed(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> PatchGuardPlus:
    return PatchGuardPlus(base, num_classes)


def repaired(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> SummedRest:
    return SummedRest(base, num_classes)


_SIZES = sizes("1x2x4/1x1", "1x2x5/1x1", "1x2x6/1x1", "1x3x6/1x1")

ENTRY = Entry(
    module="patchguard_plus",
    title="PatchGuard++ (Xiang & Mittal 2021)",
    claim="Under every patch of that size the answer is the clean prediction or an alert.",
    fault="The masked mean is the mean less the sum of the window. Logits in the patch that are large enough drown "
    "all others in rounding: what is left of the subtraction is 0, no class is confident, and no alert is raised. "
    "Besides, a confidence of exactly the threshold is certified and raises no alert.",
    repair="The features outside of the window are added up; the alert is raised at the threshold.",
    read="code: inspire-group/PatchGuard, det_bn.py, and pg2_detection in the fork JiamingZeng/PatchGuard",
    adapted="Features are what the base says of every 2×2 window of pixels; patches of one pixel; threshold 0.8.",
    printed=printed,
    repaired=repaired,
    alerts=True,
    sizes=_SIZES,
    witness=Witness(_SIZES[0], (0, 1), ((30.0, -30.0),) * 3, ((-1e10, 1e10),) * 2),
)
