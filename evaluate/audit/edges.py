"""Scores at which the certifier changes its mind, to the last bit: thresholds, whatever they are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log

import numpy as np

from evaluate.audit.harness import Site, Stand
from evaluate.audit.interface import Refused
from evaluate.audit.tables import SCALE, Row, vote
from evaluate.audit.trial import Fall, Table, Tally, tried
from robustpatch.threats.base import Patches

_GRID = (
    -8.0,
    -4.0,
    -2.0,
    -1.0,
    -0.5,
    -0.25,
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
)
_MOST = 6  # edges of a family


@dataclass(frozen=True)
class Family:
    """Scores of a view that grow with one number t: of the class `winner`, against `rival`."""

    name: str

    def row(self, classes: int, winner: int, rival: int, t: float) -> Row:
        """Logits t against 0, all others far below; or t against 0 everywhere; or shares t and 1 - t."""
        low = -SCALE if self.name == "two" else 0.0
        values = [low] * classes
        values[rival] = 1.0 - t if self.name == "shares" else 0.0
        values[winner] = t
        return tuple(values)


FAMILIES = (Family("two"), Family("all"), Family("shares"))


@dataclass(frozen=True)
class Edge:
    """A number t at which the certifier answers otherwise than at the float beside it."""

    family: Family
    t: float

    def row(self, classes: int, winner: int, rival: int) -> Row:
        return self.family.row(classes, winner, rival, self.t)


def edges(stand: Stand, threat: Patches, site: Site, tally: Tally) -> list[Edge]:
    """Both floats at each edge: where all views of the clean image say t, and where only the patched views do.

    Found by bisection between the numbers of a grid, and those that the certifier has among its attributes.
    """
    found: dict[Edge, None] = {}
    c, j = 0, 1
    grid = sorted({*_GRID, *_declared(stand)})
    for family in FAMILIES:

        def clean(t: float, family: Family = family) -> object:
            row = family.row(stand.classes, c, j, t)
            stand.say({}, row)
            claim = stand.subject.certify(stand.x, threat)
            return bool(claim.certified[0]), int(claim.prediction[0]), int(stand.subject.predict(stand.x))

        def patched(t: float, family: Family = family) -> object:
            own = vote(stand.classes, (c,))
            said = dict.fromkeys([*stand.extra(threat), *stand.shown], own)
            stand.say(said, family.row(stand.classes, j, c, t))
            return int(stand.subject.predict(site.x_adv))

        for answer in (clean, patched):
            try:
                some = _bisected(answer, grid)
            except Refused as refusal:
                tally.refused[str(refusal)] += 1
                continue
            found.update(dict.fromkeys(Edge(family, t) for t in some))
    return list(found)


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


def _declared(stand: Stand) -> list[float]:
    """Numbers among the certifier's attributes, as scores and as the logits of such probabilities."""
    numbers = [
        float(value)
        for value in getattr(stand.subject.target, "__dict__", {}).values()
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 64
    ]
    return numbers + [log(p / (1 - p)) for p in numbers if 0 < p < 1]


def try_edges(
    stand: Stand, threat: Patches, sites: list[Site], found: list[Edge], calls: int, tally: Tally
) -> Fall | None:
    """Dictate scores at the edges: of all clean views, of those that a patch reaches, of the others; the patched views
    shout for a rival, or speak for it at an edge too. The first fall is returned.
    """
    k = stand.classes
    pairs = [(0, 1), (1, 0), *([(k - 1, 0)] if k > 2 else [])]
    for site in sites[:3]:
        keys = [*stand.extra(threat), *stand.shown]
        for edge in found:
            for c, j in pairs:
                own, at = vote(k, (c,)), edge.row(k, c, j)
                for where in ("all", "reached", "outside"):
                    said = {
                        key: at if where == "all" or (key in site.touched) == (where == "reached") else own
                        for key in keys
                    }
                    others = [vote(k, (j,)), *(other.row(k, j, c) for other in found[:: max(1, len(found) // 4)])]
                    for n, row in enumerate(others):
                        if calls <= 0:
                            return None
                        calls -= 1
                        certified, fall = tried(stand, threat, Table(said, row), site, tally)
                        if fall is not None:
                            return fall
                        if n == 0 and not certified:
                            break
    return None
