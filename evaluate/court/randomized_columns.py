"""Randomized column smoothing (Levine & Feizi 2020, as Cohen et al. 2019): the share of a class among all columns."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from evaluate.court.entry import Entry, claim, one_patch, sizes
from evaluate.court.views import Base, ask, columns, counted, of_class


class RandomizedColumns:
    """The class with the largest share of the bands of columns; certified with more than 1/2 + Δ / n, Δ the bands that
    a patch meets of n. The published code has for n the third axis of images [B,C,H,W], their height.
    """

    size, axis = 2, 2

    def __init__(self, base: Base, num_classes: int) -> None:
        self.base, self.num_classes = base, num_classes

    def shares(self, x: Tensor) -> Tensor:
        return counted(ask(self.base, x, columns(x, self.size))) / x.shape[3]

    def predict(self, x: Tensor) -> Tensor:
        return self.shares(x).argmax(dim=1)

    def certify(self, x: Tensor, threat: Any) -> Any:
        _, width = one_patch(threat)
        shares = self.shares(x)
        prediction = shares.argmax(dim=1)
        return claim(
            prediction, of_class(shares, prediction) > 0.5 + (width + self.size - 1) / x.shape[self.axis] + 1e-6
        )


class ByWidth(RandomizedColumns):
    """The same, with the number of bands, which is the width."""

    axis = 3


def printed(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> RandomizedColumns:
    return RandomizedColumns(base, num_classes)


def repaired(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> ByWidth:
    return ByWidth(base, num_classes)


ENTRY = Entry(
    module="randomized_columns",
    title="Randomized column smoothing (Levine & Feizi 2020)",
    claim="With 95% confidence, no patch of that width changes the class of the smoothed classifier.",
    fault="The bands that a patch meets are divided by the height of the image where there are as many as it is "
    "wide. On images that are higher than wide too much is certified; on the square ones of the paper it makes no "
    "difference.",
    repair="They are divided by the width.",
    read="code: alevine0/patchSmoothing, utils_band_randomized.py (certify)",
    adapted="Shares are those of all columns, the limit of infinitely many draws, so that neither the certificate "
    "nor the prediction depends on chance: the paper's is weaker only by its bound of Clopper and Pearson. The bound "
    "is raised by 1e-6, so that no rounding decides.",
    printed=printed,
    repaired=repaired,
    sizes=sizes("1x3x3/1x1", "1x5x3/1x1", "1x6x4/1x1", "1x8x4/1x1", "1x8x5/1x1"),
)
