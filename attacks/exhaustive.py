"""Every placement of the patch, the most promising first."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count, cycle, islice, product
from typing import ClassVar

import torch

from attacks.attack import Attack
from attacks.base import require
from attacks.climb import Ascent, BestClimbs, Task, climb
from attacks.in_turn import climb_in_turn
from attacks.placement import OpenPlacements, grid, open_placements
from attacks.search import Search


@dataclass(frozen=True)
class ExhaustivePGD(Attack):
    """PGD at every placement, the most promising first; then again where it came closest.

    For a `SmoothedClassifier`, alone or behind PatchGuard, placements that its certificate closes are skipped, climbs
    go towards the nearest of the classes that it leaves in reach (with `rivals` > 1 towards the second cheapest and so
    on as well), and only touched ablations are scored; of PatchCleanser, placements that it closes are skipped, and
    those that its views hold least come first (`attacks.surfaces.patchcleanser`). `unpruned` does none of this and goes
    in random order. Of any other classifier the order is that of one random patch at each placement.

    The first sweep takes `steps` steps at every open placement, or at as many as leave enough of the `budget` for what
    follows (at all, unless `touched_only`; further rounds go on where it stopped). Each of `rounds` further sweeps
    takes twice as many as the one before, from new random content, at the `keep` share with the least objective. What
    is left of a `budget` goes into further such rounds, with half the step in every other one; without a budget there
    is one.

    `stride` > 1 goes from coarse to fine, for large images: the first sweep visits the placements at multiples of it,
    the last row and column included; each further one, besides what it keeps, the neighbours at half the stride before.
    Placements between them are not visited then, and `Proposal.visited` says which share of the open ones was.

    Of several patches not every choice of placements is visited: one is moved while the others stay (`climb_in_turn`).
    """

    needs_gradient: ClassVar[bool] = True
    steps: int = 5
    rounds: int = 3
    keep: float = 0.3
    step: float = 0.5
    rivals: int = 1
    stride: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rounds >= 0, "rounds", self.rounds, "at least 0")
        require(0 < self.keep <= 1, "keep", self.keep, "in (0, 1]")
        require(self.rivals >= 1, "rivals", self.rivals, "at least 1")
        require(self.stride >= 1, "stride", self.stride, "at least 1")
        Ascent(self.steps, self.step)

    @property
    def name(self) -> str:
        return "exhaustive" if self.stride == 1 else f"exhaustive-stride{self.stride}"

    def _run(self, search: Search) -> None:
        if search.threat.count > 1:
            climb_in_turn(search, 2 * self.steps, self.step, self.batch)
            return
        # Where a certificate is tested, all places are visited before any is again.
        budget = search.budget if self.touched_only else None
        found = open_placements(search, self.rivals, batch=self.batch, within=budget)
        search.open = torch.tensor([len(each) for each in found], device=search.x.device)
        tasks = [self._everywhere(search, each) for each in found]
        after = [cycle(each) for each in tasks]
        for turn in count():
            before = search.evaluations.clone()
            most = self._most(search, budget)
            queues = [
                each if own is None else list(islice(turns, min(own, len(each))))
                for each, turns, own in zip(tasks, after, most, strict=True)
            ]
            self._round(search, queues, found, self.step if turn % 2 == 0 else self.step / 2)
            idle = bool((search.evaluations == before).all())
            if search.budget is None or idle or not bool(search.going().any()):
                return

    def _most(self, search: Search, budget: int | None) -> list[int | None]:
        """How many climbs of each image the first sweep may have, so that what is left of the budget pays for those
        after it; None for all.
        """
        if budget is None:
            return [None] * len(search.y)
        passes = sum(self.keep**sweep * (2 * self.steps * 2**sweep + 1) for sweep in range(self.rounds + 1))
        left = (budget - search.evaluations).clamp(min=0)
        return [max(1, int(own / (passes * search.climb_cost))) for own in left.tolist()]

    def _round(self, search: Search, queues: list[list[Task]], found: list[OpenPlacements], step: float) -> None:
        """All sweeps once, from the many short climbs to the few long ones."""
        sizes = [len(queue) for queue in queues]
        stride = self.stride
        for sweep in range(self.rounds + 1):
            share = self.keep ** (sweep + 1)
            most = [max(1, int(share * size)) if sweep < self.rounds else 0 for size in sizes]
            ends = climb(search, queues, Ascent(self.steps * 2**sweep, step), batch=self.batch, most=most)
            queues = [self._again(search, each, stride, opened) for each, opened in zip(ends, found, strict=True)]
            stride = max(1, stride // 2)

    def _everywhere(self, search: Search, found: OpenPlacements) -> list[Task]:
        on_grid = grid(search.families[0], self.stride)
        return [Task((site,), rival) for site, rival in found.tasks() if on_grid[site]]

    def _again(self, search: Search, ends: BestClimbs, stride: int, found: OpenPlacements) -> list[Task]:
        """The tasks that came closest once more; on a coarse grid, their neighbours too."""
        kept = [task for _, task, _ in ends.best()]
        if stride == 1:
            return kept
        tasks = list(kept)
        reach, seen = max(1, stride // 2), {(task.placement[0], task.rival) for task in kept}
        allowed = set(found.placement.tolist())
        anchors = search.families[0].anchors.tolist()
        numbers = {tuple(anchor): site for site, anchor in enumerate(anchors)}
        for task in kept:
            row, column = anchors[task.placement[0]]
            for r, c in product((row - reach, row, row + reach), (column - reach, column, column + reach)):
                site = numbers.get((r, c), -1)
                if site in allowed and (site, task.rival) not in seen:
                    seen.add((site, task.rival))
                    tasks.append(Task((site,), task.rival))
        return tasks
