"""ART's rule for the votes of columns (PyTorchDeRandomizedSmoothing, 1.20.1): the second class by `kthvalue`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from evaluate.court.entry import Entry, claim, one_patch, sizes
from evaluate.court.levine_feizi import ColumnSmoothing
from evaluate.court.views import Base, beats_all, of_class


class KthValue(ColumnSmoothing):
    """The same votes; the first and the second class are those that `kthvalue` happens to name."""

    def certify(self, x: Tensor, threat: Any) -> Any:
        _, width = one_patch(threat, square=True)
        counts, k = self.counts(x), self.num_classes
        (most, first), (next_most, second) = counts.kthvalue(k, dim=1), counts.kthvalue(k - 1, dim=1)
        lead, needed = most - next_most, 2 * (width + self.size - 1)
        return claim(counts.argmax(dim=1), (lead > needed) | ((lead == needed) & (first < second)))


class EveryRival(ColumnSmoothing):
    """The same votes; the lead over every class counts, and those with a lower number win at a tie."""

    def certify(self, x: Tensor, threat: Any) -> Any:
        _, width = one_patch(threat, square=True)
        counts = self.counts(x)
        prediction, turned = counts.argmax(dim=1), width + self.size - 1
        return claim(prediction, beats_all(of_class(counts, prediction) - turned, counts + turned, prediction))


def printed(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> KthValue:
    return KthValue(base, num_classes)


def repaired(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> EveryRival:
    return EveryRival(base, num_classes)


ENTRY = Entry(
    module="art_votes",
    title="ART's vote rule (PyTorchDeRandomizedSmoothing, levine2020)",
    claim="No square patch of that side changes the class with the most votes.",
    fault="Of several classes with equally many votes, kthvalue names any one as the second. A lead of exactly 2Δ is "
    "certified where that one has a higher number than the winner, though another of them has a lower one and wins "
    "the tie.",
    repair="The lead over every class is compared, with one vote more over those of a lower number.",
    read="the installed package, adversarial-robustness-toolbox 1.20.1 (ablators/pytorch.py)",
    adapted="Written anew around the votes of columns of width 2; the audit takes the classes of ART themselves.",
    printed=printed,
    repaired=repaired,
    sizes=sizes("1x1x4/1x1", "1x1x5/1x1", "1x1x7/1x1", "1x1x8/1x1", classes=(3, 4)),
)
