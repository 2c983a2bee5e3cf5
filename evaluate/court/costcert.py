"""CostCert (Zhou et al. 2025): whether a label stays among the k most voted, by what it costs to outvote it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evaluate.court.entry import Entry, claim, one_patch, sizes
from evaluate.court.views import Base, ask, columns, counted


class CostCert:
    """Bands of columns vote for one class each. At every place of the patch its Δ votes are taken from the label and
    spent on other classes, the ones with the most of the remaining votes first; a class is bought as soon as it ties.
    Certified where less than k are bought.
    """

    size, k, label = 2, 2, 0

    def __init__(self, base: Base, num_classes: int) -> None:
        self.base, self.num_classes = base, num_classes

    def predict(self, x: Tensor) -> Tensor:
        """The label where at most k classes, itself among them, have as many votes; else another."""
        counts = counted(ask(self.base, x, columns(x, self.size)))
        rank = (counts >= counts[:, [self.label]]).sum(dim=1)
        return torch.where(rank <= self.k, self.label, self.label + 1)

    def certify(self, x: Tensor, threat: Any) -> Any:
        _, width = one_patch(threat)
        kept, scores = columns(x, self.size)[:, 0], ask(self.base, x, columns(x, self.size))
        votes = torch.nn.functional.one_hot(scores.argmax(dim=2), self.num_classes)
        certified = torch.ones(len(x), dtype=torch.bool)
        for left in range(x.shape[3] - width + 1):
            met = kept[:, left : left + width].any(dim=1)
            rest = votes[:, ~met].sum(dim=1)
            costs = (rest[:, [self.label]] - rest).clamp(min=0)
            others = torch.cat([costs[:, : self.label], costs[:, self.label + 1 :]], dim=1).sort(dim=1).values
            bought = (others.cumsum(dim=1) <= met.sum()).sum(dim=1)
            certified &= bought + 1 <= self.k
        return claim(self.predict(x), certified)


def printed(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> CostCert:
    return CostCert(base, num_classes)


ENTRY = Entry(
    module="costcert",
    title="CostCert (Zhou et al. 2025), top 2",
    claim="Under no patch of that width is the label outside of the k classes with the most votes.",
    read="code: anonymoussubmissio/CostCert, utils/topkcert_util.py (certified_drs_new_version); abstract, arXiv "
    "2507.23335",
    unknown="How the paper settles ties among the k; here a class that ties with the label counts as before it, the "
    "worst.",
    adapted="The audit knows of predicted classes, not of sets: the label is class 0, and class 1 is predicted where "
    "it is not among the k.",
    printed=printed,
    sizes=sizes("1x1x6/1x1", "1x1x8/1x1", "1x2x9/1x2", classes=(3, 4)),
)
