"""Smoothed ViT (Salman et al. 2022): bands at every stride-th column, the affected ones by a formula.

ViP's certified recovery (Li et al. 2022) uses the same formula.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evaluate.court.entry import Entry, claim, one_patch, sizes
from evaluate.court.views import Base, ask, columns


class StridedColumns:
    """Bands of `size` columns from every `stride`-th on, around the border; each votes for the classes with its largest
    score. Certified with a lead of 2·ceil((patch + size - 1) / stride) + 1 votes over the second.
    """

    size = stride = 3

    def __init__(self, base: Base, num_classes: int) -> None:
        self.base, self.num_classes = base, num_classes

    def counts(self, x: Tensor) -> Tensor:
        scores = ask(self.base, x, columns(x, self.size, self.stride)).softmax(dim=2)
        return (scores == scores.amax(dim=2, keepdim=True)).sum(dim=1)

    def affected(self, x: Tensor, width: int) -> int:
        return -(-(width + self.size - 1) // self.stride)

    def predict(self, x: Tensor) -> Tensor:
        return self.counts(x).argmax(dim=1)

    def certify(self, x: Tensor, threat: Any) -> Any:
        _, width = one_patch(threat)
        counts = self.counts(x)
        first, second = counts.topk(2, dim=1).values.unbind(dim=1)
        return claim(counts.argmax(dim=1), first >= second + 2 * self.affected(x, width) + 1)


class Counted(StridedColumns):
    """The same, with the bands that a patch meets counted at every place."""

    def affected(self, x: Tensor, width: int) -> int:
        kept = columns(x, self.size, self.stride)[:, 0].float()
        return int(torch.nn.functional.max_pool1d(kept, width, 1).sum(dim=0).max())


def printed(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> StridedColumns:
    return StridedColumns(base, num_classes)


def repaired(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> Counted:
    return Counted(base, num_classes)


ENTRY = Entry(
    module="smoothed_vit",
    title="Smoothed ViT with a stride (Salman et al. 2022); ViP's recovery (Li et al. 2022)",
    claim="No patch of that width changes the class with the most votes.",
    fault="Where the stride does not divide the width of the image, the last band and the first lie closer together "
    "than a stride, and a patch at the border meets one band more than ceil((m + s - 1) / stride).",
    repair="The bands that a patch meets are counted at every place.",
    read="code: MadryLab/smoothed-vit, src/utils/smoothing.py; UCSC-VLAA/vit_cert, engine.py (cert_recovery)",
    adapted="Bands of three columns at a stride of three (the papers: 19 at 10, where the last of 224 columns are "
    "four); no vision transformer, the audit's base sees the band.",
    printed=printed,
    repaired=repaired,
    sizes=sizes("1x1x4/1x1", "1x1x5/1x1", "1x1x7/1x1", "1x1x8/1x1", "1x1x13/1x1"),
)
