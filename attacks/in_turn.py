"""Several patches jointly: each is moved in turn while the others stay, and all contents are climbed together."""

from __future__ import annotations

from itertools import count

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attacks.climb import Ascent, Task, climb
from attacks.occlusion import ROA
from attacks.placement import sites, try_everywhere
from attacks.search import Search

_TRIED = 24  # placements of one patch that are tried in its turn
_AFRESH = 3  # one in so many turns begins elsewhere
_TURNS = 12  # without a budget


def climb_in_turn(search: Search, steps: int, step: float, batch: int) -> None:
    """Spend the budget on turns; without one, take twelve of them.

    The first turn puts grey patches down one after the other, as `ROA` with gradients does; before it, where the
    surface chooses placements together, which costs nothing, they are climbed: a small budget ends with that. Each
    further turn moves the patches that came nearest, one at a time, with their content, to the best of some random
    placements; every third begins with new content where the surface says, or at random. Each turn ends in a climb of
    all contents together.
    """
    queues, number = sites(search), len(search.y)
    where = search.y.new_zeros(number, len(search.families))
    shape = (number, len(search.families), search.x.shape[1], *search.patch_size)
    grey, nearest_yet = search.x.new_full(shape, 0.5), torch.full((number,), torch.inf, device=search.x.device)
    content = grey.clone()
    for turn in count(-1 if search.surface.groups else 0):
        before = search.evaluations.clone()
        afresh = turn % _AFRESH == _AFRESH - 1
        begin, start = where, content
        if turn == 0:
            found, value = ROA(search="gradient", stride=3, batch=batch).put_down(search)
            begin, start = found[torch.arange(number, device=found.device), value.argmin(dim=1)], grey
        elif not afresh:
            begin = _moved(search, where, content, nearest_yet, batch)
        tasks: list[list[Task]] = [[] for _ in range(number)]
        for i in search.going().nonzero()[:, 0].tolist():
            if afresh:
                tasks[i] = [Task(*site) for site in [next(queues[i], None)] if site is not None]
            else:
                tasks[i] = [Task(tuple(begin[i].tolist()), start=start[i])]
        for i, ends in enumerate(climb(search, tasks, Ascent(steps, step), batch=batch, most=[1] * number)):
            for value, task, shown in ends.best():
                if value <= float(nearest_yet[i]):
                    nearest_yet[i], content[i] = value, shown
                    where[i] = torch.tensor(task.placement, device=where.device)
        idle = bool((search.evaluations == before).all())
        if idle or (search.budget is None and turn == _TURNS - 1) or not bool(search.going().any()):
            return


def _moved(
    search: Search,
    where: Int[Tensor, "B count"],
    content: Float[Tensor, "B count C h w"],
    least: Float[Tensor, " B"],
    batch: int,
) -> Int[Tensor, "B count"]:
    """Each patch in turn at the best of some random placements, the others where they are; or where it was."""
    rows = torch.arange(len(where), device=where.device)
    for k in range(where.shape[1]):
        tried = where[:, None].repeat(1, _TRIED, 1)
        for i in search.going().nonzero()[:, 0].tolist():
            tried[i, :, k] = search.drawn([i] * _TRIED, search.stream(i))[:, k].to(where.device)
        value, best = try_everywhere(search, tried, lambda _, image, __: content[image], batch).min(dim=1)
        better = value < least
        where = torch.where(better[:, None], tried[rows, best], where)
        least = torch.where(better, value, least)
    return where
