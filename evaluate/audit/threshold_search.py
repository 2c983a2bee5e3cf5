"""Scores at which the certifier changes its mind, to the last bit: thresholds, whatever they are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log

import numpy as np

from evaluate.audit.certifier import Refused
from evaluate.audit.dictated_attack import Break, DictatedAttack
from evaluate.audit.dictated_base import SCALE, Answers, Logits, vote
from evaluate.audit.harness import Site

_GRID = {
    0.0,
    0.1,
    0.25,
    0.4,
    0.5,
    0.6,
    0.75,
    0.9,
    1.0,
    1.5,
    2.0,
    3.0,
    4.0,
    6.0,
    9.0,
    -8.0,
    -4.0,
    -2.0,
    -1.0,
    -0.5,
    -0.25,
}
_MOST = 6  # thresholds found on one grid
_FAMILIES = ("two", "all", "shares")


@dataclass(frozen=True)
class Threshold:
    """A number t at which the certifier answers otherwise than at the float beside it, and what t is: of a `winner`
    against a rival, "two" has logits t against 0, all others far below, "all" t against 0 everywhere, and "shares"
    scores t and 1 - t.
    """

    family: str
    t: float

    def row(self, classes: int, winner: int, rival: int) -> Logits:
        values = [-SCALE if self.family == "two" else 0.0] * classes
        values[rival] = 1.0 - self.t if self.family == "shares" else 0.0
        values[winner] = self.t
        return tuple(values)


def thresholds(attack: DictatedAttack, site: Site) -> list[Threshold]:
    """Both floats at each threshold: where all views of the clean image say t, and where only the patched views do.

    Found by bisection between the numbers of a grid, and those that the certifier has among its attributes.
    """
    harness, k, (c, j) = attack.harness, attack.harness.classes, (0, 1)
    keys = [*harness.extra(attack.threat), *harness.shown]

    def clean(family: str, t: float) -> object:
        harness.dictate(Answers({}, Threshold(family, t).row(k, c, j)))
        claim = harness.subject.certify(harness.x, attack.threat)
        return bool(claim.certified[0]), int(claim.prediction[0]), int(harness.subject.predict(harness.x))

    def patched(family: str, t: float) -> object:
        harness.dictate(Answers(dict.fromkeys(keys, vote(k, (c,))), Threshold(family, t).row(k, j, c)))
        return int(harness.subject.predict(site.x_adv))

    grid = sorted(_GRID | _attributes(harness.subject.target))
    found: list[Threshold] = []
    for family in _FAMILIES:
        for answer in (clean, patched):
            try:
                some = _bisected(lambda t, answer=answer, family=family: answer(family, t), grid)
                found += [Threshold(family, t) for t in some]
            except Refused as refusal:
                attack.tally.refused[str(refusal)] += 1
    return list(dict.fromkeys(found))


def _bisected(answer: Callable[[float], object], grid: list[float]) -> list[float]:
    """The neighbouring floats between which the answer changes, of at most `_MOST` changes."""
    said = [answer(t) for t in grid]
    found: list[float] = []
    for n in range(len(grid) - 1):
        if said[n] == said[n + 1] or len(found) >= 2 * _MOST:
            continue
        low, high = np.float32(grid[n]), np.float32(grid[n + 1])
        while np.nextafter(low, high) < high:
            middle = np.float32((low + high) / 2)
            if middle in (low, high):
                break
            low, high = (middle, high) if answer(float(middle)) == said[n] else (low, middle)
        found += [float(low), float(high)]
    return found


def _attributes(target: object) -> set[float]:
    """The numbers among a certifier's attributes, as scores and as the logits of such probabilities."""
    numbers = {
        float(value)
        for value in getattr(target, "__dict__", {}).values()
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 64
    }
    return numbers | {log(p / (1 - p)) for p in numbers if 0 < p < 1}


def try_thresholds(attack: DictatedAttack, sites: list[Site], found: list[Threshold], calls: int) -> Break | None:
    """Dictate scores at thresholds: of all clean views, of those that a patch reaches, of the others; the patched views
    vote for a rival, or are at a threshold for it too. The first break is returned.
    """
    k = attack.harness.classes
    keys = [*attack.harness.extra(attack.threat), *attack.harness.shown]
    pairs = [(0, 1), (1, 0), *([(k - 1, 0)] if k > 2 else [])]
    cases = [(site, one, c, j, where) for site in sites[:3] for one in found for c, j in pairs for where in (0, 1, 2)]
    for site, threshold, c, j, where in cases:
        own, at = vote(k, (c,)), threshold.row(k, c, j)
        by_view = {key: at if where == 0 or (key in site.touched) == (where == 1) else own for key in keys}
        others = [vote(k, (j,)), *(other.row(k, j, c) for other in found[:: max(1, len(found) // 4)])]
        for n, row in enumerate(others):
            if calls <= 0:
                return None
            calls -= 1
            certified, broken = attack.run(Answers(by_view, row), site)
            if broken is not None:
                return broken
            if n == 0 and not certified:
                break
    return None
