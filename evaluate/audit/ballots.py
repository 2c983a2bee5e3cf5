"""Votes to dictate: elections that a patch at a known place just overturns, so that nobody may certify them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

import torch

from evaluate.audit.tables import Answer, Key

KINDS = ("two classes", "unanimous", "tied rivals", "all rivals", "double votes", "abstaining")


@dataclass(frozen=True)
class Ballot:
    """What each clean view votes for, and what every other view votes for: the adversary's class.

    `kind` says how the rest is spread; `before` and `after` are the votes of each class for the clean image and for
    one patched at the place that the ballot was made for, counting every view shown.
    """

    kind: str
    winner: int
    rival: int
    answers: dict[Key, Answer]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def tie(self) -> bool:
        """Whether the rival wins by its number alone."""
        return self.after[self.winner] == self.after[self.rival]


def ballots(views: Counter[Key], touched: set[Key], classes: int, generator: torch.Generator) -> Iterator[Ballot]:
    """Ballots for one placement, which changes the views `touched`: of every kind, for every winner c and rival j.

    All touched views vote for c. With a of them, a patch that turns them all leaves n_c - a against n_j + a, so j wins
    iff n_c - n_j ≤ 2a - 1 + [j < c]: that lead is dictated, the largest that a wrong certificate could take for
    enough. The other votes go to a third class, as many as j's; to all of them; to none; or to c and j both. At last
    all are for c.
    """
    outside = [key for key in views if key not in touched]
    outside = [outside[i] for i in torch.randperm(len(outside), generator=generator).tolist()]
    a, rest = sum(views[key] for key in touched), sum(views[key] for key in outside)
    for kind in KINDS:
        for c, j in permutations(range(classes), 2):
            lead = min(a - 1 + (j < c), rest)  # by which the views outside have to favour c
            thirds = [t for t in range(classes) if t not in (c, j)]
            thirds = [thirds[i] for i in torch.randperm(len(thirds), generator=generator).tolist()]
            answers: dict[Key, Answer] = dict.fromkeys(touched, (c,))
            answers.update(_spread(outside, views, *_quotas(kind, c, j, thirds, lead, rest)))
            before = _count(answers, views, classes)
            after = _count({key: (j,) if key in touched else answer for key, answer in answers.items()}, views, classes)
            yield Ballot(kind, c, j, answers, before, after)


def overflow(views: Counter[Key], touched: set[Key], most: int) -> Ballot | None:
    """`most` votes for class 0, those of the touched views among them, and the others for class 1; None where class 1
    would win. A counter that holds less than `most` loses class 0, and one vote turned brings it back.
    """
    if sum(views.values()) - most >= most or sum(views[key] for key in touched) >= most:
        return None
    left = most - sum(views[key] for key in touched)
    answers: dict[Key, Answer] = dict.fromkeys(touched, (0,))
    answers.update(_spread([key for key in views if key not in touched], views, [((0,), left)], (1,)))
    before = _count(answers, views, 2)
    after = _count({key: (1,) if key in touched else answer for key, answer in answers.items()}, views, 2)
    return Ballot(f"{most} votes", 0, 1, answers, before, after)


Quotas = list[tuple[Answer, int]]


def _quotas(kind: str, c: int, j: int, thirds: list[int], lead: int, rest: int) -> tuple[Quotas, Answer]:
    """How many of `rest` views give which answer, and what those that are left over say."""
    if kind == "two classes":
        v = (rest - lead) // 2
        return [((c,), v + lead), ((j,), v)], (thirds[0],) if thirds and v > 1 else (j,)
    if kind == "tied rivals" and thirds:
        v = (rest - lead) // 3
        return [((c,), v + lead), ((j,), v), ((thirds[0],), v)], (thirds[-1],) if len(thirds) > 1 and v > 1 else (j,)
    if kind == "all rivals":
        v = (rest - lead) // (2 + len(thirds))
        return [((c,), v + lead), *(((t,), v) for t in (j, *thirds))], (j,)
    if kind == "abstaining":
        return [((c,), lead)], ()
    if kind == "double votes":
        return [((c,), lead)], (c, j)
    return [], (c,)


def _spread(keys: list[Key], views: Counter[Key], quotas: Quotas, spare: Answer) -> dict[Key, Answer]:
    """The answers in turn until their quotas are used up, then `spare`."""
    left, found = [number for _, number in quotas], {}
    for key in keys:
        fits = (n for n, (_, _) in enumerate(quotas) if left[n] >= views[key])
        n = next(fits, None)
        found[key] = spare if n is None else quotas[n][0]
        if n is not None:
            left[n] -= views[key]
    return found


def _count(answers: dict[Key, Answer], views: Counter[Key], classes: int) -> tuple[int, ...]:
    counts = [0] * classes
    for key, answer in answers.items():
        for k in answer:
            counts[k] += views[key]
    return tuple(counts)
