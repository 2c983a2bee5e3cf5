"""Gradient descent on the content of patches: one queue over images and placements, a batch of them at any time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappush, heappushpop
from itertools import count
from math import inf, isfinite, pi

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attacks.base import require
from attacks.gradient import differentiate
from attacks.search import Search
from attacks.surfaces.views import Objective, View, check_objective


@dataclass(frozen=True)
class Ascent:
    """Climbs one patch: `steps` steps against the sign of the gradient, clipped to [0, 1].

    Steps shrink from `step` to `last` times that along half a cosine wave (`last` 1: all alike). With `momentum` μ the
    direction is the sign of g_t = μ·g_{t-1} + ∇/‖∇‖₁ (Dong et al. 2018). Costs 2·steps + 1 forward passes.
    """

    steps: int
    step: float
    last: float = 0.1
    momentum: float = 0.0
    objective: Objective = "votes"

    def __post_init__(self) -> None:
        require(self.steps >= 1, "steps", self.steps, "at least 1")
        require(self.step > 0 and isfinite(self.step), "step", self.step, "positive")
        require(0 <= self.last <= 1, "last", self.last, "in [0, 1]")
        require(0 <= self.momentum < 1, "momentum", self.momentum, "in [0, 1)")
        check_objective(self.objective)

    def sizes(self, t: Int[Tensor, " P"]) -> Float[Tensor, " P"]:
        """The length of step t = 0, 1, …"""
        wave = (1 + torch.cos(t.float() * (pi / max(1, self.steps - 1)))) / 2
        return self.step * (self.last + (1 - self.last) * wave)


@dataclass(frozen=True)
class Task:
    """A climb to be done on one image: where (numbers of placements), towards which class (-1: the strongest), and
    from which content [count,C,h,w] (None: uniformly random). `only`: no other class ends it before its last step.
    """

    placement: tuple[int, ...]
    rival: int = -1
    start: Tensor | None = None
    only: bool = False


@dataclass
class BestClimbs:
    """Keeps the ends of one image's climbs: the least objectives with their tasks and contents, at most `most`."""

    most: int
    _heap: list[tuple[float, int, Task, Tensor]] = field(default_factory=list)
    _number: Iterator[int] = field(default_factory=count)

    def add(self, value: float, task: Task, content: Tensor) -> None:
        entry = (-value, -next(self._number), task, content)
        if len(self._heap) < self.most:
            heappush(self._heap, entry)
        elif self.most:
            heappushpop(self._heap, entry)

    def best(self) -> list[tuple[float, Task, Tensor]]:
        """Least objective first, the earlier of two equal ones first."""
        return [(-value, task, content) for value, _, task, content in sorted(self._heap, reverse=True)]


class _Slots:
    """The climbs under way: one row each."""

    def __init__(self, search: Search, image: list[int], tasks: list[Task], objective: Objective) -> None:
        device = search.x.device
        self.tasks = tasks
        self.image = torch.tensor(image, device=device)
        placement = torch.tensor([task.placement for task in tasks], device=device)
        rival = torch.tensor([task.rival for task in tasks], device=device)
        fresh = iter(search.noise([i for i, task in zip(image, tasks, strict=True) if task.start is None]))
        patch = torch.stack([next(fresh) if task.start is None else task.start.to(search.x) for task in tasks])
        self.view: View = search.view(self.image, placement, rival, objective)
        self.corners = search.anchors(placement)
        self.inside = search.footprint(placement)[:, None]
        self.adv = search.paste(self.image, placement, patch)
        self.drift = torch.zeros_like(self.adv)
        self.best, self.value = self.adv.clone(), torch.full((len(tasks),), inf, device=device)
        self.t = torch.zeros_like(self.image)
        self.only = torch.tensor([task.rival if task.only else -1 for task in tasks], device=device)
        self.missed = torch.zeros_like(self.only, dtype=torch.bool)
        self.other = self.adv  # where missed: the last iterate of another class than the only one
        search.visit(image, [list(task.placement) for task in tasks])

    _ROWS = ("image", "corners", "inside", "adv", "drift", "best", "value", "t", "only", "missed", "other")

    def keep(self, rows: Tensor) -> None:
        for name in self._ROWS:
            setattr(self, name, getattr(self, name)[rows])
        self.tasks = [task for task, kept in zip(self.tasks, rows.tolist(), strict=True) if kept]
        self.view = self.view.keep(rows)

    def join(self, other: _Slots) -> None:
        for name in self._ROWS:
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))
        self.tasks += other.tasks
        self.view = self.view.join(other.view)


def climb(
    search: Search, queues: Sequence[Iterable[Task]], ascent: Ascent, *, batch: int, most: Sequence[int] | None = None
) -> list[BestClimbs]:
    """Climb the tasks of every image, in the order of each image's own queue, until all are done, or the image is
    broken, or the next step would begin beyond its budget.

    `batch` climbs are under way at any time, taken from the images in turn; whichever ends makes room for the next, so
    that the device is busy to the last. Every iterate, the first and the last too, is judged by the votes it gets.
    Returns for each image its best ends, `most` of them.
    """
    waiting = deque((i, iter(queue)) for i, queue in enumerate(queues))
    ends = [BestClimbs(0 if most is None else most[i]) for i in range(len(queues))]
    room = _Room(search, 2 * ascent.steps + 1)
    slots: _Slots | None = None
    while True:
        image, tasks = room.take(waiting, batch - (len(slots.tasks) if slots is not None else 0))
        if tasks:
            fresh = _Slots(search, image, tasks, ascent.objective)
            if slots is None or not slots.tasks:
                slots = fresh
            else:
                slots.join(fresh)
        if slots is None or not slots.tasks:
            return ends
        _step(search, slots, ascent)
        over = (slots.t > ascent.steps) | ~search.going()[slots.image]
        if over.any():
            for row in over.nonzero()[:, 0].tolist():
                i = int(slots.image[row])
                room.release(i)
                one = slice(row, row + 1)
                if slots.missed[row] and not search.broken[i]:
                    least = torch.full_like(slots.value[one], inf)
                    search.offer(slots.image[one], slots.corners[one], slots.other[one], least, slots.missed[one])
                if ends[i].most:
                    content = search.crop(slots.best[one], slots.corners[one])[0]
                    ends[i].add(float(slots.value[row]), slots.tasks[row], content)
            slots.keep(~over)


def _step(search: Search, slots: _Slots, ascent: Ascent) -> None:
    """Score every row, offer what it is, and move it on; a row at its last iterate is not moved."""
    moving = slots.t < ascent.steps
    last = ~moving
    value = torch.empty_like(slots.value)
    prediction = torch.empty_like(slots.image)
    gradient = torch.zeros_like(slots.adv)
    if moving.any():
        value[moving], prediction[moving], found = differentiate(slots.view.keep(moving), slots.adv[moving])
        gradient[moving] = found.nan_to_num()  # as of √x at 0: no direction
    if last.any():
        with torch.no_grad():
            value[last], prediction[last] = slots.view.keep(last)(slots.adv[last])
    search.spend(slots.image, slots.view.cost * (1 + moving.long()))
    better = value < slots.value
    slots.best[better], slots.value[better] = slots.adv[better], value[better]
    hit = search.hits(slots.image, prediction)
    astray = hit & (slots.only >= 0) & (prediction != slots.only)
    search.offer(slots.image, slots.corners, slots.adv, value, hit & ~astray)
    slots.missed |= astray
    slots.other = torch.where(astray[:, None, None, None], slots.adv, slots.other)
    if ascent.momentum:
        scale = gradient.abs().sum(dim=(1, 2, 3), keepdim=True).clamp(min=torch.finfo(gradient.dtype).tiny)
        gradient = slots.drift = ascent.momentum * slots.drift + gradient / scale
    size = ascent.sizes(slots.t).to(slots.adv.dtype)[:, None, None, None]
    moved = (slots.adv - size * gradient.sign()).clamp(0, 1)
    slots.adv = torch.where(slots.inside & moving[:, None, None, None], moved, slots.adv)
    slots.t = slots.t + 1


class _Room:
    """Admits climbs: of the images in turn, within their budgets, what is under way counted in full."""

    def __init__(self, search: Search, passes: int) -> None:
        self.search = search
        self.cost = search.climb_cost * passes
        self.running = [0] * len(search.y)

    def take(self, waiting: deque[tuple[int, Iterator[Task]]], places: int) -> tuple[list[int], list[Task]]:
        image, tasks = [], []
        going, spent = self.search.going().tolist(), self.search.evaluations.tolist()
        held = []
        while waiting and len(tasks) < places:
            i, queue = waiting.popleft()
            if not going[i]:
                continue
            if self.search.budget is not None and spent[i] + self.running[i] * self.cost >= self.search.budget:
                held.append((i, queue))  # until it is seen what its climbs under way really cost
                continue
            task = next(queue, None)
            if task is not None:
                image.append(i)
                tasks.append(task)
                self.running[i] += 1
                waiting.append((i, queue))
        waiting.extend(held)
        return image, tasks

    def release(self, image: int) -> None:
        self.running[image] -= 1
