"""Masked DS with a detection threshold as corrected: windows wrap, and what overlaps with them across the border is
forgotten.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evaluate.court.entry import Entry, Witness, sizes
from evaluate.court.masked_ds import Wrapping
from evaluate.court.robust_masking import THRESHOLD, overlapping
from evaluate.court.views import Base


class NotAcross(Wrapping):
    """Masked DS, windows around the border, threshold 0.5, PatchGuard's corrected bound. As windows that overlap with
    the n-th only those from n - size + 1 to n + size - 1 are looked at, cut off at 0 and at the last.
    """

    threshold = THRESHOLD

    def near(self, windows: Tensor) -> Tensor:
        apart = torch.arange(len(windows))[:, None] - torch.arange(len(windows))
        return apart.abs() < self.side + self.size - 1


class Across(NotAcross):
    """The same with all windows that overlap."""

    def near(self, windows: Tensor) -> Tensor:
        return overlapping(windows)


def printed(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> NotAcross:
    return NotAcross(base, num_classes)


def repaired(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> Across:
    return Across(base, num_classes)


_SIZES = sizes("1x1x6/1x1", "1x1x7/1x1", "1x1x8/1x1", "1x1x9/1x1")

ENTRY = Entry(
    module="masked_ds_threshold",
    title="Masked DS with a threshold, after both corrections (Xiang et al. 2021)",
    claim="No patch of that width changes the class with the largest sum of features after masking.",
    fault="The correction of December 2021 looks for windows that overlap with the patch by their numbers, and "
    "forgets those across the border: the first window overlaps with the last. A patch at the left border that votes "
    "for the class itself has a window masked whose other features it does not reach, and which the bound did not "
    "count.",
    repair="All windows that overlap are looked at.",
    read="code: the fork JiamingZeng/PatchGuard, utils/defense_utils.py (provable_masking with ds and a threshold), "
    "and two more copies of it",
    unknown="Whether the authors' own repository has it, too: its file was to be had of February 2021 alone. The "
    "main tables have a threshold of 0.",
    adapted="As masked DS; threshold 0.5.",
    printed=printed,
    repaired=repaired,
    sizes=_SIZES,
    witness=Witness(
        size=_SIZES[6],
        corner=(0, 0),
        clean=(
            (0.0, 0.0),
            (16.0, 0.0),
            (0.0, 10.0),
            (16.0, 0.0),
            (0.0, 10.0),
            (16.0, 0.0),
            (0.0, 0.0),
            (0.0, 0.0),
            (16.0, 0.0),
        ),
        patched=((64.0, 0.0), (0.0, 20.0)),
    ),
)
