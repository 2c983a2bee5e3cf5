"""Evidence so loud that a sum loses what is beside it: for the winner, for the rival, for both."""

from __future__ import annotations

import random

from evaluate.audit.harness import Site, Stand
from evaluate.audit.tables import Key, Row, vote
from evaluate.audit.trial import Fall, Table, Tally, tried
from robustpatch.threats.base import Patches

# Where sums of ones stop growing: eight bits, bfloat16, float16, float32; and far beyond.
POWERS = (127, 128, 255, 256, 257, 512, 2048, 4096, 65504, 2**24, 2**25, 2**26, 2**27, 2**30, 1e10, 1e20)


def try_loud(
    stand: Stand, threat: Patches, sites: list[Site], calls: int, rng: random.Random, tally: Tally
) -> Fall | None:
    """Let some views speak very loudly for the winner, for the rival or for both, and the rest decide by small leads.

    The patched views speak for the rival, as loudly or plainly, for the winner, or not at all. About `calls` tables.
    """
    for n in range(calls):
        power = float(POWERS[n % len(POWERS)]) * rng.choice((1.0, 1.0, 1.0, 3.0))
        c, j = rng.sample(range(stand.classes), 2)
        site = sites[n % min(len(sites), 3)]
        said = _clean(stand, site, c, j, power, rng)
        said = {**dict.fromkeys(stand.extra(threat), _row(stand, {c: power})), **said}
        for scores in ({j: 1.0}, {j: power}, {}, {c: power}):
            certified, fall = tried(stand, threat, Table(said, _row(stand, scores)), site, tally)
            if fall is not None:
                return fall
            if not certified:
                break
    return None


def _clean(stand: Stand, site: Site, c: int, j: int, power: float, rng: random.Random) -> dict[Key, Row]:
    """One of several patterns of loud and plain views; `power` is how loud."""
    touched = [key for key in stand.shown if key in site.touched]
    outside = [key for key in stand.shown if key not in site.touched]
    if rng.random() < 0.3:
        rng.shuffle(outside)
    if rng.random() < 0.5:
        return {
            **dict.fromkeys(touched, _row(stand, {c: power})),
            **_level(stand, len(touched), outside, c, j, power, rng),
        }
    lead = rng.randint(-min(12, len(outside)), min(2 * len(touched) + 3, len(outside)))
    most = (len(outside) + lead) // 2 if rng.random() < 0.5 else min(len(outside), max(0, lead) + rng.randint(0, 12))
    fewer = max(0, min(len(outside) - most, most - lead))
    ones = [{c: 1.0}] * most + [{j: 1.0}] * fewer + [{}] * (len(outside) - most - fewer)
    said = dict(zip(outside, (_row(stand, scores) for scores in ones), strict=True))
    inside = dict.fromkeys(touched, _row(stand, {c: 1.0} if rng.random() < 0.5 else {}))
    pattern = rng.choice(("reached", "one reached", "both outside", "winner outside"))
    if pattern == "reached":
        inside = dict.fromkeys(touched, _row(stand, {c: power}))
    elif pattern == "one reached" and touched:
        inside[rng.choice(touched)] = _row(stand, {c: power})
    else:
        own = power + rng.choice((0.0, 1.0, 2.0, 4.0))
        loud = {c: own, j: power} if pattern == "both outside" else {c: own}
        for key in rng.sample(outside, min(len(outside), rng.choice((1, 1, 2, 3, 5)))):
            said[key] = _row(stand, loud)
    return {**inside, **said}


def _level(
    stand: Stand, touched: int, outside: list[Key], c: int, j: int, power: float, rng: random.Random
) -> dict[Key, Row]:
    """Loud votes for c and j that the patch just brings level, and plain ones that then decide, if none is lost."""
    lead = touched + rng.choice((-1, 0, 0, 0, 1))
    spare = rng.randint(1, max(1, len(outside) - max(lead, 0) - 2))
    fewer = max(0, (len(outside) - spare - lead) // 2)
    loud = [{c: power}] * max(0, fewer + lead) + [{j: power}] * fewer
    ones = [{j: 1.0} if rng.random() < 0.8 else {c: 1.0} for _ in range(max(0, len(outside) - len(loud)))]
    order = [*loud, *ones][: len(outside)]
    return dict(zip(outside, (_row(stand, scores) for scores in order), strict=True))


def _row(stand: Stand, scores: dict[int, float]) -> Row:
    return tuple(scores.get(k, 0.0) for k in range(stand.classes))


def quiet(stand: Stand, fall: Fall) -> Table:
    """The same answers, spoken as plain votes: whoever falls then does not fall by loudness."""

    def plain(row: Row) -> Row:
        return vote(stand.classes, () if max(row) == min(row) else tuple(k for k, v in enumerate(row) if v == max(row)))

    return Table({key: plain(row) for key, row in fall.table.said.items()}, plain(fall.table.others))
