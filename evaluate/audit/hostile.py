"""Certificates of dictated votes, attacked by the worst base there is: wrong counts, ties, strides, swapped sides."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from evaluate.audit.ballots import KINDS, Ballot, ballots, overflow
from evaluate.audit.finding import Finding
from evaluate.audit.interface import Claim, Refused
from evaluate.audit.limit import Stopped
from evaluate.audit.stand import Site, Stand, reproducer
from robustpatch.threat import PatchThreat

_PLAIN = ("two classes", "unanimous")
_LOUD = 1000.0  # how much louder patched views speak, to those who add up scores


@dataclass
class Tally:
    """What the ballots came to."""

    findings: list[Finding] = field(default_factory=list)
    ballots: int = 0
    certified: int = 0
    touched: tuple[int, int] = (0, 0)


@dataclass(frozen=True, eq=False)
class Break:
    """A ballot that was certified and overturned."""

    ballot: Ballot
    site: Site
    claim: Claim
    loud: float
    prediction: int  # of the attacked image; of the clean one, where `patched` is not set
    patched: bool


def try_votes(stand: Stand, threat: PatchThreat, budget: int, generator: torch.Generator) -> Tally:
    """Dictate votes that a patch just overturns, ask for a certificate, and where there is one, overturn them.

    About `budget` views are shown to the base. Raises `Refused` where the certifier does not know this threat.
    """
    total = sum(stand.shown.values())
    stand.subject.certify(stand.x, threat)
    _ = stand.reach  # asked for now: explanations must not need the certifier, which may not be asked any more
    sites = stand.sites(threat, max(12, min(200, budget // (4 * total))), generator)
    tally = Tally(touched=(min(s.weight for s in sites), max(s.weight for s in sites)))
    chosen = _telling(sites, generator)
    cases = _ordered([(ballot, site) for site in chosen for ballot in _all(stand, site, generator)], generator)
    broken: list[Break] = []
    with suppress(Stopped):  # whoever asks next is stopped again: what was found by then is kept
        for ballot, site in cases[: max(24, min(240, budget // (3 * total)))]:
            found = _tried(stand, threat, ballot, site, 1.0, tally)
            broken += [] if found is None else [found]
    if broken:
        tally.findings += _explained(stand, threat, broken, sites)
    if any(one.patched and one.ballot.kind in _PLAIN for one in broken):
        return tally
    with suppress(Stopped):
        for ballot, site in [(b, s) for b, s in cases if b.kind == "unanimous"][:12]:
            found = _tried(stand, threat, ballot, site, _LOUD, tally)
            if found is not None and found.patched and _tried(stand, threat, ballot, site, 1.0, tally) is None:
                tally.findings.append(_finding(stand, threat, found, "loudness"))
                break
    return tally


def _all(stand: Stand, site: Site, generator: torch.Generator) -> Iterator[Ballot]:
    yield from ballots(stand.shown, site.touched, stand.classes, generator)
    for most in (128, 256):
        counted = overflow(stand.shown, site.touched, most)
        if counted is not None:
            yield counted


def _telling(sites: list[Site], generator: torch.Generator) -> list[Site]:
    """Up to eight sites that differ in what they touch: the largest, the smallest, those at the corners, others."""
    distinct = list({frozenset(site.touched): site for site in sites if site.touched}.values())
    by_weight = sorted(distinct, key=lambda site: -site.weight)
    rest = [distinct[i] for i in torch.randperm(len(distinct), generator=generator).tolist()]
    order = [*by_weight[:2], *distinct[:3], *by_weight[-1:], *rest]
    return list({id(site): site for site in order}.values())[:8]


def _ordered(cases: list[tuple[Ballot, Site]], generator: torch.Generator) -> list[tuple[Ballot, Site]]:
    """In random order, but a few of every kind first: a small budget is to see them all."""
    mixed = [cases[i] for i in torch.randperm(len(cases), generator=generator).tolist()]
    seen: dict[tuple[str, bool], int] = {}
    turns = []
    for ballot, _ in mixed:
        key = (ballot.kind, ballot.tie)
        turns.append(seen.get(key, 0))
        seen[key] = seen.get(key, 0) + 1
    return [mixed[i] for i in sorted(range(len(mixed)), key=turns.__getitem__)]


def _tried(stand: Stand, threat: PatchThreat, ballot: Ballot, site: Site, loud: float, tally: Tally) -> Break | None:
    """Certify the votes dictated and, where that is done, show the patched image; a success must be seen twice."""
    tally.ballots += 1
    answers = {**dict.fromkeys(stand.extra(threat), (ballot.winner,)), **ballot.answers}
    stand.base.dictate(answers, (ballot.rival,), loud=loud)
    claim = stand.subject.certify(stand.x, threat)
    if not bool(claim.certified[0]):
        return None
    tally.certified += 1
    clean, attacked = (int(stand.subject.predict(x)) for x in (stand.x, site.x_adv))
    if _holds(claim, clean, attacked):
        return None
    subject, base = stand.made()  # nothing that was kept from other votes
    base.dictate(answers, (ballot.rival,), loud=loud)
    again = subject.certify(stand.x, threat)
    clean, attacked = (int(subject.predict(x)) for x in (stand.x, site.x_adv))
    if not bool(again.certified[0]) or _holds(again, clean, attacked):
        return None
    patched = clean == int(again.prediction[0])
    return Break(ballot, site, again, loud, attacked if patched else clean, patched)


def _holds(claim: Claim, clean: int, attacked: int) -> bool:
    return clean == attacked == int(claim.prediction[0])


_WHY = {
    "agreement": "predict contradicts certify without any patch",
    "tie": "equal votes go to the lower number, and the certificate forgets that",
    "tie among rivals": "rivals with equal votes are not equal: the certificate compared with one that loses ties",
    "runner-up": "another rival than the one it was compared with wins",
    "border": "only where the patch touches more views than elsewhere: look at the wrap and the stride",
    "reach": "one changed pixel reaches every view: look at what happens before the ablation",
    "more than all": "the patch touches every view, and can do as it likes",
    "counts": "the certificate counts fewer views than the patch changes",
    "counters": "so many votes are more than the counter holds",
    "loudness": "scores are added up instead of votes, so that one view can outweigh all others",
}


def _explained(stand: Stand, threat: PatchThreat, broken: list[Break], sites: list[Site]) -> list[Finding]:
    """One finding for each cause that the broken ballots point to, the plainest case first."""
    everywhere = stand.reach == sum(stand.shown.values())
    contradicted = [one for one in broken if not one.patched]
    rest = [one for one in broken if one.patched]
    plain = [one for one in rest if one.ballot.kind in _PLAIN]
    overflown = [one for one in rest if one.ballot.kind not in KINDS]
    found = [_finding(stand, threat, some[0], "agreement", len(some)) for some in [contradicted] if some]
    if not rest:
        return found
    sizes = sorted(site.weight for site in sites)
    if all(one.site.weight == sum(stand.shown.values()) for one in rest):
        cause = "reach" if everywhere else "more than all"
    elif len(overflown) == len(rest):
        cause = "counters"
    elif all(one.ballot.tie for one in rest):
        cause = "tie" if plain else "tie among rivals"
    elif not plain:
        cause = "runner-up"
    elif min(one.site.weight for one in rest) > sizes[len(sizes) // 2]:
        cause = "border"
    else:
        cause = "counts"
    telling = plain or rest
    first = min(telling, key=lambda one: KINDS.index(one.ballot.kind) if one.ballot.kind in KINDS else len(KINDS))
    return [*found, _finding(stand, threat, first, cause, len(rest))]


def _finding(stand: Stand, threat: PatchThreat, one: Break, check: str, times: int = 1) -> Finding:
    ballot, claimed = one.ballot, int(one.claim.prediction[0])
    shape, total = "x".join(map(str, stand.shape)), sum(stand.shown.values())
    asked = (
        f"votes {list(ballot.before)} of {total} views ({shape}) were certified for class {claimed} against {threat}"
    )
    if one.patched:
        at = ", ".join(str(tuple(corner)) for corner in one.site.corners.tolist())
        asked += (
            f"; a patch at {at} changes {one.site.weight} views, which makes them {list(ballot.after)} and the "
            f"prediction {one.prediction}"
        )
    else:
        asked += f", but predict says {one.prediction}"
    note = {
        "kind": "votes",
        "threat": [threat.height, threat.width, threat.count],
        "classes": stand.classes,
        "prediction": claimed,
        "loud": one.loud,
        "patched": one.patched,
    }
    answers = {**dict.fromkeys(stand.extra(threat), (ballot.winner,)), **ballot.answers}
    tensors = reproducer(stand, threat, one.site, answers, (ballot.rival,))
    return Finding(check, "broken certificate", f"{asked}: {_WHY[check]}", tensors, note, times)


__all__ = ["Refused", "Tally", "try_votes"]
