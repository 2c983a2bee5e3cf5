"""De-randomized smoothing by columns (Levine & Feizi 2020), the rule as published: a control, which has to hold."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evaluate.court.entry import Entry, claim, one_patch, sizes
from evaluate.court.views import Base, ask, columns


class ColumnSmoothing:
    """Every band of `size` columns votes for all classes with a softmax of at least `threshold`; most votes win, the
    lowest class at a tie. Certified with a lead of more than 2Δ over the second, or of 2Δ where the second has the
    higher number, Δ = patch width + band width - 1. Equal seconds are sorted by number, so that the lowest of them
    counts.
    """

    size, threshold = 2, 0.3

    def __init__(self, base: Base, num_classes: int) -> None:
        self.base, self.num_classes = base, num_classes

    def counts(self, x: Tensor) -> Tensor:
        return (ask(self.base, x, columns(x, self.size)).softmax(dim=2) >= self.threshold).sum(dim=1)

    def predict(self, x: Tensor) -> Tensor:
        return self.counts(x).argmax(dim=1)

    def certify(self, x: Tensor, threat: Any) -> Any:
        _, width = one_patch(threat)
        counts, order = torch.sort(self.counts(x), dim=1, descending=True, stable=True)
        lead, most = counts[:, 0] - counts[:, 1], 2 * (width + self.size - 1)
        return claim(order[:, 0], (lead > most) | ((lead == most) & (order[:, 0] < order[:, 1])))


def printed(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> ColumnSmoothing:
    return ColumnSmoothing(base, num_classes)


ENTRY = Entry(
    module="levine_feizi",
    title="De-randomized smoothing, columns (Levine & Feizi 2020)",
    claim="No patch of that width changes the class with the most votes.",
    read="code: alevine0/patchSmoothing, as inspire-group/PatchGuard keeps it in utils/defense_utils.py (ds)",
    printed=printed,
    sizes=sizes("1x1x5/1x1", "1x1x7/1x1", "1x2x8/1x2"),
)
