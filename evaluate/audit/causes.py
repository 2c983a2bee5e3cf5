"""Why a ballot fell: a cause is named where an experiment shows it, and what was seen otherwise."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import torch

from evaluate.audit.cast import Break, cast, table_of
from evaluate.audit.finding import Finding
from evaluate.audit.harness import Site, Stand
from evaluate.audit.limit import Stopped
from evaluate.audit.loud import quiet
from evaluate.audit.tables import vote
from evaluate.audit.trial import Fall, Table, Tally, finding, tried
from evaluate.audit.vote_patterns import KINDS, Ballot, ballot, overflow
from robustpatch.threats.base import Patches
from robustpatch.threats.rectangle import PatchThreat

PLAIN = ("two classes", "unanimous")
VARIES = "the views that it asks its base about differ from call to call, so no other cause was looked for"


def explained(stand: Stand, threat: Patches, broken: list[Break], sites: list[Site], tally: Tally) -> list[Finding]:
    """A finding for what fell without a patch, one for what fell by chance, and one for the rest, of its plainest case.

    Of a certifier that asks about different views from call to call no cause is named.
    """
    if _varies(stand, threat):
        first = _plainest([one for one in broken if one.fall.patched] or broken)
        return [finding(stand, threat, first.fall, "votes", VARIES, len(broken))]
    found: list[Finding] = []
    contradicted = [one for one in broken if not one.fall.patched]
    chance = [one for one in broken if one.fall.patched and one.fall.by_chance]
    rest = [one for one in broken if one.fall.patched and not one.fall.by_chance]
    for some, check in ((contradicted, "agreement"), (chance, "chance")):
        if some:
            found.append(finding(stand, threat, some[0].fall, check, times=len(some)))
    if rest:
        check, cause, first = "votes", "", _plainest(rest)
        with suppress(Stopped):  # no time to see why
            plain = [one for one in rest if one.ballot.kind in PLAIN] or _simplest(stand, threat, rest, tally)
            rest = [*rest, *(one for one in plain if one not in rest)]
            first = _plainest(plain or rest)
            check, cause = _cause(stand, threat, first, rest, bool(plain), sites, tally)
        found.append(finding(stand, threat, first.fall, check, cause, len(rest)))
    return found


def _plainest(broken: list[Break]) -> Break:
    order = {kind: n for n, kind in enumerate(KINDS)}
    return min(broken, key=lambda one: order.get(one.ballot.kind, len(KINDS)))


def _varies(stand: Stand, threat: Patches) -> bool:
    """Tells whether the views differ from call to call; once the audit is stopped, it answers no without a test."""
    try:
        return stand.varies(threat)
    except Stopped:
        return False


def _simplest(stand: Stand, threat: Patches, broken: list[Break], tally: Tally) -> list[Break]:
    """Ballots of two classes that fall where the broken ones fell, of the same winners and rivals."""
    found: list[Break] = []
    for one in [one for one in broken if one.ballot.kind in KINDS][:3]:
        tries = [
            cast(stand, threat, _with(stand, one, "two classes", one.site.weight - k), one.site, tally) for k in (0, 1)
        ]
        found += [fall for fall in tries if fall is not None and fall.fall.patched]
    return found


def _cause(
    stand: Stand, threat: Patches, first: Break, rest: list[Break], plain: bool, sites: list[Site], tally: Tally
) -> tuple[str, str]:
    """The name of the check, and what an experiment showed."""
    total, one = sum(stand.shown.values()), first.ballot
    if all(other.site.weight == total for other in rest):
        if stand.reach == total:
            return "reach", f"one changed pixel alone changes all {total} views"
        return "more than all", f"the patch changes every one of the {total} views"
    if all(other.ballot.kind not in KINDS for other in rest):
        most = one.before[0]
        fewer = overflow(stand.shown, first.site.touched, most - 1, stand.classes)
        if fewer is not None and cast(stand, threat, fewer, first.site, tally) is None:
            return "counters", f"at {most} votes for one class it falls, at {most - 1} it does not"
        return "votes", ""
    if all(other.ballot.tie for other in rest):
        tried_again = _with(stand, first, one.kind, one.lead - 1)
        if not _certified(stand, threat, tried_again, first.site, tally):
            if plain:
                return "tie", "with one vote less for it, it is not certified: only certificates that end in a tie fall"
            if cast(stand, threat, _with(stand, first, "two classes", one.lead), first.site, tally) is None:
                return "tie among rivals", "with one rival alone the same lead does not fall; with several it does"
        return "votes", ""
    if not plain:
        if cast(stand, threat, _with(stand, first, "two classes", one.lead), first.site, tally) is None:
            return "runner-up", "with one rival alone the same lead does not fall; with several it does"
        return "votes", ""
    sizes = sorted(site.weight for site in sites)
    usual = sizes[len(sizes) // 2]
    if min(other.site.weight for other in rest if other.ballot.kind in PLAIN) > usual:
        site = next(site for site in sites if site.weight == usual)
        lighter = [
            replace(first, site=site, ballot=_with(stand, replace(first, site=site), "two classes", usual - k))
            for k in (0, 1)
        ]
        if all(cast(stand, threat, other.ballot, site, tally) is None for other in lighter):
            at = ", ".join(str(tuple(corner)) for corner in site.corners.tolist())
            return "border", f"a patch at {at} changes only {usual} views, and leads that just turn there do not fall"
    return _counted(stand, threat, first, tally)


def searched(stand: Stand, threat: Patches, fall: Fall, check: str, tally: Tally) -> Finding:
    """The finding of a fall that was searched for, named after what plain votes for a rival would not have done."""
    if _varies(stand, threat):
        return finding(stand, threat, fall, "votes", VARIES)
    if not fall.patched or fall.by_chance:
        return finding(stand, threat, fall, "chance" if fall.patched else "agreement")
    try:
        return _compared(stand, threat, fall, check, tally)
    except Stopped:  # no time to see why
        return finding(stand, threat, fall, "votes")


def _compared(stand: Stand, threat: Patches, fall: Fall, check: str, tally: Tally) -> Finding:
    """The same, of a fall that is seen every time."""
    rival = vote(stand.classes, (fall.prediction,)) if fall.prediction >= 0 else fall.table.others
    clean = {key: row for key, row in fall.table.said.items() if key in {*stand.shown, *stand.extra(threat)}}
    plain, simple = quiet(stand, fall), Table(clean, rival)
    if _differs(plain, fall.table) and tried(stand, threat, plain, fall.site, tally)[1] is None:
        cause = "the same answers as plain votes, all equally loud, do not break it"
        return finding(stand, threat, fall, check if check in ("loudness", "threshold") else "scores", cause)
    if _differs(simple, fall.table) and tried(stand, threat, simple, fall.site, tally)[1] is None:
        who = f"with every patched view for class {fall.prediction}, the prediction does not change"
        return finding(stand, threat, fall, "other answers", who if fall.prediction >= 0 else "")
    return finding(stand, threat, fall, "votes")


def _differs(one: Table, other: Table) -> bool:
    return (one.said, one.others) != (other.said, other.others)


def _counted(stand: Stand, threat: Patches, first: Break, tally: Tally) -> tuple[str, str]:
    """Measures the lead that the winner needs for a certificate, and the votes that a patch can take, and for swapped
    sides.
    """
    weight = first.site.weight
    least = _least(stand, threat, first, tally)
    if least is None:
        return "votes", ""
    cause = f"it certifies a lead of {least}, and this patch can turn {weight} views, which takes {2 * weight}"
    turned = PatchThreat(threat.width, threat.height, threat.count)
    if threat.height == threat.width or turned.height > stand.shape[1] or turned.width > stand.shape[2]:
        return "counts", cause
    sites = stand.sites(turned, 12, _chance(stand))
    heaviest = max(sites, key=lambda site: site.weight)
    other = _least(stand, turned, replace(first, site=heaviest), tally)
    near = other is not None and abs(other - 2 * weight) <= 1 and abs(least - 2 * heaviest.weight) <= 1
    if near and heaviest.weight != weight:
        return "sides", (
            f"{cause}; against {turned}, which can turn {heaviest.weight}, it asks for a lead of {other}: each "
            "patch gets what its sides swapped would need"
        )
    return "counts", cause


def _least(stand: Stand, threat: Patches, first: Break, tally: Tally) -> int | None:
    """The least lead of the winner over one rival that is certified, all touched views voting for the winner."""
    weight = first.site.weight
    total = sum(stand.shown.values())
    low, high = max(0, 2 * weight - total), total
    found: int | None = None
    while found is None or high > low:
        middle = high if found is None else (low + high) // 2
        dictated = _with(stand, first, "lead", middle - weight)
        if _certified(stand, threat, dictated, first.site, tally):
            high = middle
            found = dictated.before[dictated.winner] - dictated.before[dictated.rival]
        elif found is None:
            return None
        else:
            low = middle + 1
    return found


def _certified(stand: Stand, threat: Patches, some: Ballot, site: Site, tally: Tally) -> bool:
    return tried(stand, threat, table_of(stand, threat, some), site, tally)[0]


def _with(stand: Stand, like: Break, kind: str, lead: int) -> Ballot:
    """A ballot of that kind and lead for the same place, winner and rival."""
    outside = [key for key in stand.shown if key not in like.site.touched]
    c, j = like.ballot.winner, like.ballot.rival
    order = (c, j, *(t for t in range(stand.classes) if t not in (c, j)))
    return ballot(kind, stand.shown, like.site.touched, outside, order, lead)


def _chance(stand: Stand) -> torch.Generator:
    return torch.Generator().manual_seed(sum(stand.shape))
