"""Masked DS (Xiang et al. 2021): PatchGuard's masking of de-randomized smoothing's columns, whose windows did not
wrap.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evaluate.court.entry import Entry, claim, one_patch, sizes
from evaluate.court.robust_masking import certified, exact, masked_sums, overlapping
from evaluate.court.views import Base, ask, bands, columns, last_argmax, spans


class MaskedColumns:
    """Made for patches of `side` columns: features are what the base says of every band of `size` columns, around the
    border; of each class the heaviest window of side + size - 1 neighbouring bands is masked. No window goes around the
    border.
    """

    side, size, threshold, corrected = 1, 2, 0.0, True

    def __init__(self, base: Base, num_classes: int) -> None:
        self.base, self.num_classes = base, num_classes

    def features(self, x: Tensor) -> Tensor:
        """[B,K,W]."""
        return exact(ask(self.base, x, columns(x, self.size)).transpose(1, 2))

    def windows(self, width: int) -> Tensor:
        """[L,W]."""
        return spans(width, self.side + self.size - 1)

    def near(self, windows: Tensor) -> Tensor:
        """Which windows are held to overlap [L,L]."""
        return overlapping(windows)

    def predict(self, x: Tensor) -> Tensor:
        return last_argmax(masked_sums(self.features(x), self.windows(x.shape[3]), self.threshold))

    def certify(self, x: Tensor, threat: Any) -> Any:
        _, width = one_patch(threat)
        windows = self.windows(x.shape[3])
        if x.shape[3] <= self.side + self.size - 1:
            raise ValueError(f"a window of {self.side + self.size - 1} bands is the whole image")
        prediction, holds = certified(self.features(x), windows, self.near(windows), self.threshold, self.corrected)
        return claim(prediction, holds & torch.tensor(width <= self.side))


class Wrapping(MaskedColumns):
    """The same with windows around the border, too."""

    def windows(self, width: int) -> Tensor:
        return bands(width, self.side + self.size - 1)


def printed(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> MaskedColumns:
    return MaskedColumns(base, num_classes)


def repaired(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> Wrapping:
    return Wrapping(base, num_classes)


ENTRY = Entry(
    module="masked_ds",
    title="Masked DS before its windows wrapped (Xiang et al. 2021)",
    claim="No patch of that width changes the class with the largest sum of features after masking.",
    fault="The bands go around the border of the image and the windows did not. A patch at the left border changes "
    "the first bands and the last, which no window holds together: masking takes off one part and leaves the other.",
    repair="Windows go around the border, as the fork has them.",
    read="code: inspire-group/PatchGuard, utils/defense_utils.py of February 2021 (masking_ds), and the fork "
    "JiamingZeng/PatchGuard, where an option ds makes windows wrap",
    unknown="Which of the two the published table was computed with.",
    adapted="Bands of two columns, patches of one; features are logits clipped to [0, 64] and rounded to 1/64, so "
    "that no rounding decides (the paper: confidences). Threshold 0.",
    printed=printed,
    repaired=repaired,
    sizes=sizes("1x1x4/1x1", "1x1x5/1x1", "1x1x6/1x1", "1x1x8/1x1"),
)
