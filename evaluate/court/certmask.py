"""CertMask (Lyu et al. 2026): one round of masks, each patch hidden by k of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evaluate.court.entry import Entry, claim, one_patch, sizes
from evaluate.court.views import Base, ask, counted, crossed, spans


class CertMask:
    """Made for patches of `side` × `side`: masks one pixel larger at every place, over the border by one, so that four
    hide any patch. All views agree: their class. Else the rarest class that at least four views are of. Certified where
    all agree.

    No rule of prediction can make unanimity in one round enough. Let x be unanimously c and y unanimously j, and let
    them differ in two places alone that no mask hides together. The image that is x in one place and y in the other is
    one patch away from both, so that it would have to be c and j; and no view contradicts it: those that hide one place
    see x or y.
    """

    side, hiding = 1, 4

    def __init__(self, base: Base, num_classes: int) -> None:
        self.base, self.num_classes = base, num_classes

    def counts(self, x: Tensor) -> Tensor:
        size = self.side + 1
        hidden = crossed(*(spans(length, size, -1, length - self.side) for length in x.shape[2:]))
        return counted(ask(self.base, x, ~hidden))

    def predict(self, x: Tensor) -> Tensor:
        counts = self.counts(x)
        return torch.where(counts >= self.hiding, counts, counts.amax() + 1).argmin(dim=1)

    def certify(self, x: Tensor, threat: Any) -> Any:
        counts = self.counts(x)
        agree = counts.amax(dim=1) == counts.sum(dim=1)
        return claim(counts.argmax(dim=1), agree & (max(one_patch(threat)) <= self.side))


class Detecting(CertMask):
    """The same views, and an alert where they do not all agree: what unanimity in one round does prove."""

    def predict(self, x: Tensor) -> Tensor:
        counts = self.counts(x)
        return torch.where(counts.amax(dim=1) == counts.sum(dim=1), counts.argmax(dim=1), -1)


def printed(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> CertMask:
    return CertMask(base, num_classes)


def repaired(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> Detecting:
    return Detecting(base, num_classes)


ENTRY = Entry(
    module="certmask",
    title="CertMask (Lyu et al. 2026), as far as it could be read",
    claim="No patch of that size changes the prediction: unanimity of one round of masks is enough, each patch being "
    "hidden by k of them.",
    fault="Unanimity of one round cannot be enough for recovery, whatever is predicted where the views disagree: an "
    "image may be one patch away from two unanimous images of different classes.",
    repair="An alert where the views disagree: the same certificate then holds for detection. (Recovery takes "
    "PatchCleanser's second round.)",
    read="abstract and the beginning of the caption of Figure 1 (arXiv 2511.09834)",
    unknown="What is predicted where views disagree, and the exact condition of the certificate: the text at hand "
    "ends before them, and no code was found. If the certificate asks for more than unanimity of one round, this "
    "verdict is not of it.",
    adapted="Patches of one pixel, masks of 2×2, k = 4.",
    printed=printed,
    repaired=repaired,
    alerts=True,
    sizes=sizes("1x1x3/1x1", "1x1x4/1x1", "1x1x6/1x1", "1x2x4/1x1", "1x3x4/1x1"),
)
