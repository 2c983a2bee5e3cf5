"""Certificates of dictated votes, attacked by the worst base there is: wrong counts, ties, strides, swapped sides."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Literal

import torch

from evaluate.audit.cast import Break, cast
from evaluate.audit.causes import PLAIN, explained
from evaluate.audit.finding import Finding
from evaluate.audit.harness import Site, Stand
from evaluate.audit.interface import Refused
from evaluate.audit.limit import Stopped
from evaluate.audit.trial import Tally, finding
from evaluate.audit.vote_patterns import KINDS, Ballot, ballots, overflow
from robustpatch.threats.base import Patches

_LOUD = 1000.0  # how much louder patched views speak, to those who add up scores
Brief = Literal["sizes", "counters"]
_PLACES: dict[Brief, int] = {"sizes": 8, "counters": 4}


def try_votes(
    stand: Stand,
    threat: Patches,
    budget: int,
    generator: torch.Generator,
    brief: Brief | None = None,
    tally: Tally | None = None,
) -> Tally:
    """Dictate votes that a patch just overturns, ask for a certificate, and where there is one, overturn them.

    About `budget` views are shown to the base. `brief`: few places and ballots, for one of many patch "sizes", or for
    the "counters" of very many votes. What is found is added to `tally`, also when the audit is stopped. Raises
    `Refused` where the certifier does not know this threat.
    """
    tally = tally or Tally()
    total = sum(stand.shown.values())
    stand.subject.certify(stand.x, threat)
    _ = stand.reach  # asked for now: explanations must not need the certifier, which may not be asked any more
    sites = stand.sites(threat, _PLACES[brief] if brief else max(12, min(200, budget // (4 * total))), generator)
    tally.touched = (min(s.weight for s in sites), max(s.weight for s in sites))
    chosen = telling(sites, generator)[: 3 if brief else 8]
    cases = _ordered([(ballot, site) for site in chosen for ballot in _all(stand, site, generator)], generator)
    most = max(40, min(240, budget // (3 * total)))
    if brief == "sizes":
        cases = [case for case in cases if case[0].kind in ("two classes", "unanimous")][:10]
    elif brief == "counters":
        plain = [case for case in cases if case[0].kind == "two classes"][:6]
        cases = [*[case for case in cases if case[0].kind not in KINDS][:4], *plain]
    broken: list[Break] = []
    with suppress(Stopped):  # whoever asks next is stopped again: what was found by then is kept
        for ballot, site in cases[:most]:
            found = cast(stand, threat, ballot, site, tally)
            broken += [] if found is None else [found]
        if (
            brief is None
            and not stand.varies(threat)
            and not any(one.fall.patched and one.ballot.kind in PLAIN for one in broken)
        ):
            loud = [case for case in cases if case[0].kind == "unanimous"][:12]
            tally.findings += _shouted(stand, threat, loud, tally)
    if broken:
        tally.findings += explained(stand, threat, broken, sites, tally)
    return tally


def _shouted(stand: Stand, threat: Patches, cases: list[tuple[Ballot, Site]], tally: Tally) -> list[Finding]:
    """A certificate of votes all alike that falls when the patched views speak louder, and not otherwise."""
    for ballot, site in cases:
        found = cast(stand, threat, ballot, site, tally, _LOUD)
        if found is None or not found.fall.patched:
            continue
        try:
            plain = cast(stand, threat, ballot, site, tally)
        except Stopped:  # no time to see why
            return [finding(stand, threat, found.fall, "votes")]
        if plain is None:
            cause = f"spoken as loudly as the other votes, and not {_LOUD:g} times, the same answers do not break it"
            return [finding(stand, threat, found.fall, "loudness", cause)]
    return []


def telling(sites: list[Site], generator: torch.Generator) -> list[Site]:
    """Up to eight sites that differ in what they touch: the largest, the smallest, those at the corners, others."""
    distinct = list({frozenset(site.touched): site for site in sites if site.touched}.values())
    by_weight = sorted(distinct, key=lambda site: -site.weight)
    rest = [distinct[i] for i in torch.randperm(len(distinct), generator=generator).tolist()]
    order = [*by_weight[:2], *distinct[:3], *by_weight[-1:], *rest]
    return list({id(site): site for site in order}.values())[:8]


def _all(stand: Stand, site: Site, generator: torch.Generator) -> Iterator[Ballot]:
    yield from ballots(stand.shown, site.touched, stand.classes, generator)
    for most in (128, 256):
        counted = overflow(stand.shown, site.touched, most, stand.classes)
        if counted is not None:
            yield counted


def _ordered(cases: list[tuple[Ballot, Site]], generator: torch.Generator) -> list[tuple[Ballot, Site]]:
    """In random order, but a few of every kind first: a small budget is to see them all. Every other case is of a place
    where a patch changes most.
    """
    drawn = [cases[i] for i in torch.randperm(len(cases), generator=generator).tolist()]
    most = max((site.weight for _, site in cases), default=0)
    turn, places = {True: 0, False: 0}, []
    for _, site in drawn:
        places.append(turn[site.weight == most])
        turn[site.weight == most] += 1
    mixed = [drawn[i] for i in sorted(range(len(drawn)), key=places.__getitem__)]
    seen: dict[tuple[str, bool, bool], int] = {}
    turns = []
    for ballot, _ in mixed:
        key = (ballot.kind, ballot.tie, ballot.rival < ballot.winner)
        turns.append(seen.get(key, 0))
        seen[key] = seen.get(key, 0) + 1
    return [mixed[i] for i in sorted(range(len(mixed)), key=turns.__getitem__)]


__all__ = ["Refused", "Tally", "telling", "try_votes"]
