"""Projected gradient descent on the content of a patch, at a number of placements."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

from attacks.attack import Attack
from attacks.base import require
from attacks.climb import Ascent, Task, climb
from attacks.placement import sites
from attacks.search import Search
from attacks.surfaces.views import Objective


@dataclass(frozen=True)
class PatchPGD(Attack):
    """Patch PGD: each restart picks a placement and random content, and descends the soft-vote gap by gradient.

    The scheme of Chiang et al. (2020) and Levine & Feizi (2020); `published()` has their parameters. Every iterate is
    judged by the real votes, and an image is done at its first success. Where a `SmoothedClassifier`, PatchGuard or
    PatchCleanser is not to be tested but broken (`touched_only`), the restarts are `guided`: they go to the placements
    that the certificate leaves open, one of each touched set in turn, cheapest first, and towards the rival that is
    cheapest there. Otherwise placements are random.

    At most restarts · (2·steps + 1) · n evaluations an image, n the ablations scored: those touched, or all of them.
    """

    needs_gradient: ClassVar[bool] = True
    steps: int = 30
    restarts: int = 20
    step: float = 0.25
    last: float = 0.1
    momentum: float = 0.0
    objective: Objective = "votes"
    guided: bool = True
    label: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.restarts >= 1, "restarts", self.restarts, "at least 1")
        self.ascent  # noqa: B018  its own checks

    @classmethod
    def published(cls, *, restarts: int = 80) -> PatchPGD:
        """150 equal steps of 0.05 at each of 80 random placements, cross-entropy of the mean softmax of all ablations.

        As in Levine & Feizi's release; on a classifier without ablations, as in Chiang et al.'s. Theirs keep the
        iterate of largest loss and never score the last; here every iterate is judged, which only adds successes.
        """
        return cls(
            steps=150,
            restarts=restarts,
            step=0.05,
            last=1.0,
            objective="mean-softmax",
            guided=False,
            touched_only=False,
            label="pgd-published",
        )

    @property
    def ascent(self) -> Ascent:
        return Ascent(self.steps, self.step, self.last, self.momentum, self.objective)

    @property
    def name(self) -> str:
        return self.label or f"pgd-{self.restarts}"

    def _run(self, search: Search) -> None:
        found = sites(search, guided=self.guided)
        queues = [(Task(site, rival) for site, rival in islice(each, self.restarts)) for each in found]
        climb(search, queues, self.ascent, batch=self.batch)
