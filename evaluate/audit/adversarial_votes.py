"""Certificates of dictated votes, attacked by the worst base there is: wrong counts, ties, strides, swapped sides."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Literal

import torch

from evaluate.audit.diagnosis import PLAIN, explained
from evaluate.audit.dictated_attack import Break, DictatedAttack
from evaluate.audit.finding import Finding, Tally
from evaluate.audit.harness import Harness, Site
from evaluate.audit.stopping import Stopped
from evaluate.audit.vote_patterns import KINDS, Ballot, ballots, overflow

_LARGE = 1000.0  # by what the scores of patched views are multiplied, for certifiers that add up scores
Brief = Literal["sizes", "counters"]
_PLACES: dict[Brief, int] = {"sizes": 8, "counters": 4}
Case = tuple[Ballot, Site]


def try_votes(attack: DictatedAttack, budget: int, generator: torch.Generator, brief: Brief | None = None) -> Tally:
    """Dictate votes that a patch just overturns, ask for a certificate, and where there is one, overturn them.

    About `budget` views are shown to the base. `brief`: few places and ballots, for one of many patch "sizes", or for
    the "counters" of very many votes. Returns the tally of the attack, to which findings are added also when the audit
    is stopped. Raises `Refused` where the certifier does not know this threat.
    """
    harness, threat, tally = attack.harness, attack.threat, attack.tally
    harness.subject.certify(harness.x, threat)
    _ = harness.reach  # asked for now: explanations must not need the certifier, which may not be asked any more
    places = _PLACES[brief] if brief else max(12, min(200, budget // (4 * harness.total)))
    sites = harness.sites(threat, places, generator)
    tally.touched = (min(s.weight for s in sites), max(s.weight for s in sites))
    chosen = telling(sites, generator)[: 3 if brief else 8]
    cases = _ordered([(ballot, site) for site in chosen for ballot in _all(harness, site, generator)], generator)
    most = max(40, min(240, budget // (3 * harness.total)))
    if brief == "sizes":
        cases = [case for case in cases if case[0].kind in PLAIN][:10]
    elif brief == "counters":
        plain = [case for case in cases if case[0].kind == "two classes"][:6]
        cases = [*[case for case in cases if case[0].kind not in KINDS][:4], *plain]
    broken: list[Break] = []
    with suppress(Stopped):  # whoever asks next is stopped again: what was found by then is kept
        for ballot, site in cases[:most]:
            found = attack.cast(ballot, site)
            broken += [] if found is None else [found]
        by_plain_votes = any(one.patched and one.ballot and one.ballot.kind in PLAIN for one in broken)
        if brief is None and not harness.varies(threat) and not by_plain_votes:
            tally.findings += _by_large_scores(attack, [case for case in cases if case[0].kind == "unanimous"][:12])
    if broken:
        tally.findings += explained(attack, broken, sites)
    return tally


def _by_large_scores(attack: DictatedAttack, cases: list[Case]) -> list[Finding]:
    """A certificate of votes all alike that falls when the patched views have larger scores, and not otherwise."""
    for ballot, site in cases:
        found = attack.cast(ballot, site, _LARGE)
        if found is None or not found.patched:
            continue
        try:
            plain = attack.cast(ballot, site)
        except Stopped:  # no time to see why
            return [attack.finding(found, "votes")]
        if plain is None:
            cause = f"with scores as large as those of the other votes, not {_LARGE:g} times, they do not break it"
            return [attack.finding(found, "large scores", cause)]
    return []


def telling(sites: list[Site], generator: torch.Generator) -> list[Site]:
    """Up to eight sites that differ in what they touch: the largest, the smallest, those at the corners, others."""
    distinct = list({frozenset(site.touched): site for site in sites if site.touched}.values())
    by_weight = sorted(distinct, key=lambda site: -site.weight)
    rest = [distinct[i] for i in torch.randperm(len(distinct), generator=generator).tolist()]
    order = [*by_weight[:2], *distinct[:3], *by_weight[-1:], *rest]
    return list({id(site): site for site in order}.values())[:8]


def _all(harness: Harness, site: Site, generator: torch.Generator) -> Iterator[Ballot]:
    yield from ballots(harness.shown, site.touched, harness.classes, generator)
    for most in (128, 256):
        counted = overflow(harness.shown, site.touched, most, harness.classes)
        if counted is not None:
            yield counted


def _ordered(cases: list[Case], generator: torch.Generator) -> list[Case]:
    """In random order, but a few of every kind first: a small budget is to see them all. Every other case is of a place
    where a patch changes most.
    """
    drawn = [cases[i] for i in torch.randperm(len(cases), generator=generator).tolist()]
    most = max((site.weight for _, site in cases), default=0)
    mixed = _by_turns(drawn, [site.weight == most for _, site in drawn])
    return _by_turns(mixed, [(one.kind, one.tie, one.rival < one.winner) for one, _ in mixed])


def _by_turns(cases: list[Case], keys: list) -> list[Case]:
    """The first case of each key, then the second of each, and so on."""
    seen: dict[object, int] = {}
    turns: list[int] = []
    for key in keys:
        seen[key] = seen.get(key, -1) + 1
        turns.append(seen[key])
    return [cases[i] for i in sorted(range(len(cases)), key=turns.__getitem__)]
