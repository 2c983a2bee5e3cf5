"""Minority Reports (McCoyd et al. 2020): a grid of masked predictions, votes of its 3×3 cells, an alert where one
differs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evaluate.court.entry import Entry, claim, one_patch, sizes
from evaluate.court.views import Base, ask, crossed, spans


class MinorityReports:
    """Made for patches of `side` × `side`: masks two pixels larger at every place inside the image. Each 3×3 of them
    votes for the class with the most confidence, the least of the nine left out; a vote above `sure` for another class
    than that of the whole image is an alert. Certified where all vote for its class with at least `sure`.
    """

    side, sure, outside = 1, 0.8, 0

    def __init__(self, base: Base, num_classes: int) -> None:
        self.base, self.num_classes = base, num_classes

    def cells(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The class of the whole image [B], and class and confidence of each cell [B,N]."""
        size, height, width = self.side + 2, *x.shape[2:]
        down, across = (spans(length, size, -self.outside, length - size + self.outside) for length in (height, width))
        if min(len(down), len(across)) < 3:
            raise ValueError(f"images of {height}x{width} have no 3x3 grid of masks")
        whole = torch.ones(1, height, width, dtype=torch.bool)
        scores = ask(self.base, x, torch.cat([whole, ~crossed(down, across)])).softmax(dim=2)
        grid = scores[:, 1:].unflatten(1, (len(down), len(across))).unfold(1, 3, 1).unfold(2, 3, 1).flatten(-2)
        confidence, voted = ((grid.sum(dim=-1) - grid.amin(dim=-1)) / 8).flatten(1, 2).max(dim=2)
        return scores[:, 0].argmax(dim=1), voted, confidence

    def alarming(self, confidence: Tensor) -> Tensor:
        return confidence > self.sure

    def predict(self, x: Tensor) -> Tensor:
        whole, voted, confidence = self.cells(x)
        alert = ((voted != whole[:, None]) & self.alarming(confidence)).any(dim=1)
        return torch.where(alert, -1, whole)

    def certify(self, x: Tensor, threat: Any) -> Any:
        whole, voted, confidence = self.cells(x)
        agree = ((voted == whole[:, None]) & (confidence >= self.sure)).all(dim=1)
        return claim(whole, agree & (max(one_patch(threat)) <= self.side))


class HangingMasks(MinorityReports):
    """The same with masks that hang over the border by up to two pixels, and an alert at exactly `sure`, too."""

    outside = 2

    def alarming(self, confidence: Tensor) -> Tensor:
        return confidence >= self.sure


def printed(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> MinorityReports:
    return MinorityReports(base, num_classes)


def repaired(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> HangingMasks:
    return HangingMasks(base, num_classes)


ENTRY = Entry(
    module="minority_reports",
    title="Minority Reports (McCoyd et al. 2020)",
    claim="Under every patch of that size the answer is the clean prediction or an alert.",
    fault="The argument needs nine masks that hide the patch. In a corner only one does, the other eight outvote it, "
    "and the cell votes for the patch's class. Besides, a cell with a confidence of exactly the threshold is "
    "certified and raises no alert.",
    repair="Masks hang over the border by two pixels, so that nine hide every patch; the alert is raised at the "
    "threshold.",
    read="code and notes of the PatchCleanser authors: inspire-group/PatchCleanser, misc/notes_on_mr.md and pc_mr.py",
    unknown="The paper itself could not be read; the rule for votes and alerts is that of pc_mr.py.",
    adapted="Patches of one pixel, masks of 3×3 (the paper: 5×5 and 7×7), threshold 0.8.",
    printed=printed,
    repaired=repaired,
    alerts=True,
    sizes=sizes("1x5x5/1x1", "1x5x6/1x1"),
)
