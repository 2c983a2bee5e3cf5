"""Scores so large that a sum loses those beside them: for the winner, for the rival, for both."""

from __future__ import annotations

import random

from evaluate.audit.dictated_attack import Break, DictatedAttack
from evaluate.audit.dictated_base import Answers, Key
from evaluate.audit.harness import Harness, Site

# Where sums of ones stop growing: eight bits, bfloat16, float16, float32; and far beyond.
POWERS = (127, 128, 255, 256, 257, 512, 2048, 4096, 65504, 2**24, 2**25, 2**26, 2**27, 2**30, 1e10, 1e20)
Scores = dict[int, float]  # of some classes; the others have 0


def try_large_scores(attack: DictatedAttack, sites: list[Site], calls: int, rng: random.Random) -> Break | None:
    """Give some views very large scores for the winner, for the rival or for both; the rest decide by small leads.

    The patched views have large or plain scores for the rival, large ones for the winner, or none at all. About `calls`
    answers are dictated, and the first break is returned.
    """
    harness = attack.harness
    for n in range(calls):
        power = float(POWERS[n % len(POWERS)]) * rng.choice((1.0, 1.0, 1.0, 3.0))
        c, j = rng.sample(range(harness.classes), 2)
        site = sites[n % min(len(sites), 3)]
        clean = _clean(harness, site, c, j, power, rng)
        scores = {**{key: {c: power} for key in harness.extra(attack.threat)}, **clean}
        by_view = {key: _row(harness.classes, some) for key, some in scores.items()}
        for patched in ({j: 1.0}, {j: power}, {}, {c: power}):
            certified, broken = attack.run(Answers(by_view, _row(harness.classes, patched)), site)
            if broken is not None:
                return broken
            if not certified:
                break
    return None


def _clean(harness: Harness, site: Site, c: int, j: int, power: float, rng: random.Random) -> dict[Key, Scores]:
    """One of several patterns of large and plain scores; `power` is how large."""
    touched = [key for key in harness.shown if key in site.touched]
    outside = [key for key in harness.shown if key not in site.touched]
    if rng.random() < 0.3:
        rng.shuffle(outside)
    if rng.random() < 0.5:
        return {**{key: {c: power} for key in touched}, **_level(len(touched), outside, c, j, power, rng)}
    lead = rng.randint(-min(12, len(outside)), min(2 * len(touched) + 3, len(outside)))
    most = (len(outside) + lead) // 2 if rng.random() < 0.5 else min(len(outside), max(0, lead) + rng.randint(0, 12))
    fewer = max(0, min(len(outside) - most, most - lead))
    ones: list[Scores] = [{c: 1.0}] * most + [{j: 1.0}] * fewer + [{}] * (len(outside) - most - fewer)
    scores = dict(zip(outside, ones, strict=True))
    inside: dict[Key, Scores] = dict.fromkeys(touched, {c: 1.0} if rng.random() < 0.5 else {})
    pattern = rng.choice(("reached", "one reached", "both outside", "winner outside"))
    if pattern == "reached":
        inside = {key: {c: power} for key in touched}
    elif pattern == "one reached" and touched:
        inside[rng.choice(touched)] = {c: power}
    else:
        own = power + rng.choice((0.0, 1.0, 2.0, 4.0))
        large = {c: own, j: power} if pattern == "both outside" else {c: own}
        for key in rng.sample(outside, min(len(outside), rng.choice((1, 1, 2, 3, 5)))):
            scores[key] = large
    return {**inside, **scores}


def _level(touched: int, outside: list[Key], c: int, j: int, power: float, rng: random.Random) -> dict[Key, Scores]:
    """Large scores for c and j that the patch just brings level, and plain ones that then decide, if none is lost."""
    lead = touched + rng.choice((-1, 0, 0, 0, 1))
    spare = rng.randint(1, max(1, len(outside) - max(lead, 0) - 2))
    fewer = max(0, (len(outside) - spare - lead) // 2)
    large = [{c: power}] * max(0, fewer + lead) + [{j: power}] * fewer
    ones = [{j: 1.0} if rng.random() < 0.8 else {c: 1.0} for _ in range(max(0, len(outside) - len(large)))]
    return dict(zip(outside, [*large, *ones][: len(outside)], strict=True))


def _row(classes: int, scores: Scores) -> tuple[float, ...]:
    return tuple(scores.get(k, 0.0) for k in range(classes))
