"""Votes to dictate: elections that a patch at a known place just overturns, so that nobody may certify them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

import torch

from evaluate.audit.dictated_base import Key, Vote

KINDS = ("two classes", "unanimous", "tied rivals", "all rivals", "double votes", "abstaining", "doubled rivals")


@dataclass(frozen=True)
class Ballot:
    """Votes for a base to cast: one for each clean view, and one for every other view, the adversary's class or
    classes.

    `kind` says how the rest is spread; `lead` is by how many votes the views outside of the patch favour the winner;
    `before` and `after` are the votes of each class for the clean image and for one patched at the place that the
    ballot was made for, counting every view shown.
    """

    kind: str
    winner: int
    rival: int
    answers: dict[Key, Vote]
    others: Vote
    lead: int
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def tie(self) -> bool:
        """Tells whether winner and rival have equal votes after the patch."""
        return self.after[self.winner] == self.after[self.rival]


def ballots(views: Counter[Key], touched: set[Key], classes: int, generator: torch.Generator) -> Iterator[Ballot]:
    """Ballots for one placement, which changes the views `touched`: of every kind, for every winner c and rival j.

    All touched views vote for c. With a of them, a patch that turns them all leaves n_c - a against n_j + a. Two leads
    of the views outside are dictated: a, after which c and j have equal votes, and a - 1, after which j has more. So
    both a rule that gives ties to the lower class and one that gives them to the higher, or to chance, are asked where
    they differ; what the rule really does with the tie is seen, never assumed. The other votes go to a third class, as
    many as j's; to all of them; to none; or to c and j both. At last all are for c. In "doubled rivals" the patched
    views vote for j and the third class both, which then tie with c, all three.
    """
    outside = [key for key in views if key not in touched]
    outside = [outside[i] for i in torch.randperm(len(outside), generator=generator).tolist()]
    for kind in KINDS:
        for c, j in permutations(range(classes), 2):
            thirds = [t for t in range(classes) if t not in (c, j)]
            thirds = [thirds[i] for i in torch.randperm(len(thirds), generator=generator).tolist()]
            if kind == "doubled rivals" and not thirds:
                continue
            a = sum(views[key] for key in touched)
            for lead in (a, a - 1) if kind != "unanimous" else (len(outside),):
                if lead >= 0:
                    yield ballot(kind, views, touched, outside, (c, j, *thirds), lead)


def ballot(
    kind: str, views: Counter[Key], touched: set[Key], outside: list[Key], order: tuple[int, ...], lead: int
) -> Ballot:
    """The ballot of that kind; `order`: winner, rival, third classes. A lead is cut to the number of views outside."""
    c, j, *thirds = order
    rest = sum(views[key] for key in outside)
    lead = min(lead, rest)
    answers: dict[Key, Vote] = dict.fromkeys(touched, (c,))
    answers.update(_spread(outside, views, *_quotas(kind, c, j, thirds, lead, rest)))
    others = (j, thirds[0]) if kind == "doubled rivals" else (j,)
    patched = {key: others if key in touched else answer for key, answer in answers.items()}
    return Ballot(
        kind, c, j, answers, others, lead, _count(answers, views, len(order)), _count(patched, views, len(order))
    )


def overflow(views: Counter[Key], touched: set[Key], most: int, classes: int) -> Ballot | None:
    """`most` votes for class 0, those of the touched views among them, the others for class 1 up to `most` - 1, then
    for the last class; None where class 0 would not win. A counter that holds less than `most` loses class 0, and one
    vote turned brings it back.
    """
    rest = sum(views.values()) - most
    if not 0 <= rest < (2 * most - 2 if classes > 2 else most) or sum(views[key] for key in touched) >= most:
        return None
    left = most - sum(views[key] for key in touched)
    answers: dict[Key, Vote] = dict.fromkeys(touched, (0,))
    outside = [key for key in views if key not in touched]
    answers.update(_spread(outside, views, [((0,), left), ((1,), min(rest, most - 1))], (classes - 1,)))
    before = _count(answers, views, classes)
    patched = {key: (1,) if key in touched else answer for key, answer in answers.items()}
    return Ballot(f"{most} votes", 0, 1, answers, (1,), left, before, _count(patched, views, classes))


Quotas = list[tuple[Vote, int]]


def _quotas(kind: str, c: int, j: int, thirds: list[int], lead: int, rest: int) -> tuple[Quotas, Vote]:
    """Shares `rest` views out among the answers, and says what those that are left over answer."""
    if kind == "two classes":
        v = (rest - lead) // 2
        return [((c,), v + lead), ((j,), v)], (thirds[0],) if thirds and v > 1 else (j,)
    if kind == "lead":  # this very lead, where there is a third class for a view left over
        v = (rest - lead) // 2
        alike = [t for t in thirds if (t < c) == (j < c)]  # asked for no more than the rival by any tie rule
        return [((c,), v + lead), ((j,), v)], (*alike, *thirds, j)[:1]
    if kind in ("tied rivals", "doubled rivals") and thirds:
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


def _spread(keys: list[Key], views: Counter[Key], quotas: Quotas, spare: Vote) -> dict[Key, Vote]:
    """The answers in turn until their quotas are used up, then `spare`."""
    left, found = [number for _, number in quotas], {}
    for key in keys:
        fits = (n for n, (_, _) in enumerate(quotas) if left[n] >= views[key])
        n = next(fits, None)
        found[key] = spare if n is None else quotas[n][0]
        if n is not None:
            left[n] -= views[key]
    return found


def _count(answers: dict[Key, Vote], views: Counter[Key], classes: int) -> tuple[int, ...]:
    counts = [0] * classes
    for key, answer in answers.items():
        for k in answer:
            counts[k] += views[key]
    return tuple(counts)
