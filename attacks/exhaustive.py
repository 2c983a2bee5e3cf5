"""Every placement of the patch, the most promising first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from attacks.climb import Ascent, Ends, Task, climb
from attacks.placement import Openings, openings
from attacks.search import Attack, Search, require
from robustpatch.errors import InvalidInput
from robustpatch.threat import PatchThreat


@dataclass(frozen=True)
class ExhaustivePGD(Attack):
    """PGD at every placement, in the order of the certificate's margin; then again where it came closest.

    For a `SmoothedClassifier`, placements that the exact certificate closes are skipped and only touched ablations are
    scored. `unpruned` does neither: all placements in random order, all ablations scored at every step. The first
    sweep takes `steps` steps at every open placement. Each of `rounds` further sweeps takes twice as many steps as the
    one before, at the `keep` share of placements with the least objective.

    `stride` > 1 goes from coarse to fine (for large images): the first sweep visits placements at multiples of it, the
    last row and column included; each further one the neighbours, at half the stride, of those it keeps. Not every
    placement is visited then, and `Proposal.visited` says which share was.
    """

    steps: int = 10
    rounds: int = 2
    keep: float = 0.25
    step: float = 0.5
    momentum: float = 0.0
    rivals: int = 1
    fresh: bool = True
    stride: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rounds >= 0, "rounds", self.rounds, "at least 0")
        require(0 < self.keep <= 1, "keep", self.keep, "in (0, 1]")
        require(self.stride >= 1, "stride", self.stride, "at least 1")
        Ascent(self.steps, self.step, momentum=self.momentum)

    @property
    def name(self) -> str:
        return "exhaustive" if self.stride == 1 else f"exhaustive-stride{self.stride}"

    def check(self, threat: PatchThreat) -> None:
        if threat.count != 1:
            raise InvalidInput(
                f"patch is {threat}; the exhaustive search visits single placements, use pgd for several"
            )

    def _run(self, search: Search) -> None:
        found = openings(search, max(1, self.rivals))
        search.open = torch.tensor([len(each) for each in found], device=search.x.device)
        queues: list[Iterable[Task]] = [self._first(each) for each in found]
        steps = self.steps
        for sweep in range(self.rounds + 1):
            ascent = Ascent(steps, self.step, momentum=self.momentum)
            keep = [max(1, int(self.keep ** (sweep + 1) * len(each))) if sweep < self.rounds else 0 for each in found]
            ends = climb(search, queues, ascent, batch=self.batch, most=keep.__getitem__)
            queues = [self._again(end) for end in ends]
            steps *= 2

    def _first(self, found: Openings) -> Iterable[Task]:
        for turn in range(max(1, self.rivals)):
            for position, site in enumerate(found.placement.tolist()):
                rivals = found.within(position) if self.rivals else [-1]
                if turn < len(rivals):
                    yield Task((site,), rivals[turn])

    def _again(self, ends: Ends) -> Iterable[Task]:
        for _, task, content in ends.best():
            yield replace(task, start=None if self.fresh else content)
