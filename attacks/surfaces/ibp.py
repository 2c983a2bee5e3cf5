"""A classifier that is certified by bounds as an attack sees it: its bounds say where a patch can do anything."""

from __future__ import annotations

from torch import Tensor

from attacks.surfaces.base import Attacked, OpenPlacements, Surface, surface_of
from robustpatch.defenses.ibp import BoundedClassifier

_LIMIT = 50_000  # evaluations of an image, where the attack sets none: a few tries must not wait for many bounds


class BoundedSurface(Surface):
    """Placements in the order of their bounds, the least first; those where no content changes the answer are closed.

    Bounds take two passes of the network at each placement, which are charged. Where that is more than half of the
    budget, and of several patches, nothing is asked.
    """

    def __init__(self, classifier: BoundedClassifier, attacked: Attacked) -> None:
        super().__init__(classifier, attacked)
        self.bounded, threat = classifier, attacked.threat
        cost = 2 * len(threat.family(*attacked.size)) if threat.count == 1 else 0
        self.guides = 0 < 2 * cost <= (attacked.budget or _LIMIT)
        self.blind, self._cost = not self.guides, cost if self.guides else 0

    @property
    def asking_cost(self) -> int:
        return self._cost

    def open_placements(self, shuffled: list[Tensor], rivals: int) -> list[OpenPlacements]:
        if not self.guides:
            return super().open_placements(shuffled, rivals)
        self.evaluations += self.asking_cost
        margins = self.bounded.placement_margins(self.attacked.x, self.attacked.threat)
        found = []
        for own, held, order in zip(margins, self.prediction == self.attacked.y, shuffled, strict=True):
            order = order[own[order].argsort(stable=True)]
            found.append(OpenPlacements.in_order(order[(own[order] < 0) | ~held]))
        return found


@surface_of.register
def _(classifier: BoundedClassifier, attacked: Attacked, pruned: bool) -> Surface:
    return BoundedSurface(classifier, attacked) if pruned else Surface(classifier, attacked)
