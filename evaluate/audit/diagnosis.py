"""The cause of a broken certificate: named where an experiment shows it; otherwise only what was seen is said."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import torch

from evaluate.audit.dictated_attack import Break, DictatedAttack
from evaluate.audit.dictated_base import Answers, Logits, vote
from evaluate.audit.finding import Finding
from evaluate.audit.harness import Site
from evaluate.audit.stopping import Stopped
from evaluate.audit.vote_patterns import KINDS, Ballot, ballot, overflow
from robustpatch.threats.rectangle import PatchThreat

PLAIN = ("two classes", "unanimous")
_VARIES = "the views that it asks its base about differ from call to call, so no other cause was looked for"


def explained(attack: DictatedAttack, broken: list[Break], sites: list[Site]) -> list[Finding]:
    """A finding for what broke without a patch, one for what broke by chance, and one for the rest, of its plainest
    case. All were broken by ballots.

    Of a certifier that asks about different views from call to call no cause is named.
    """
    if _varies(attack):
        first = _plainest([one for one in broken if one.patched] or broken)
        return [attack.finding(first, "votes", _VARIES, len(broken))]
    found: list[Finding] = []
    contradicted = [one for one in broken if not one.patched]
    chance = [one for one in broken if one.patched and one.by_chance]
    rest = [one for one in broken if one.patched and not one.by_chance]
    for some, check in ((contradicted, "agreement"), (chance, "chance")):
        if some:
            found.append(attack.finding(some[0], check, times=len(some)))
    if rest:
        check, cause, first = "votes", "", _plainest(rest)
        with suppress(Stopped):  # no time to see why
            plain = [one for one in rest if _kind(one) in PLAIN] or _simplest(attack, rest)
            rest = [*rest, *(one for one in plain if one not in rest)]
            first = _plainest(plain or rest)
            check, cause = _cause(attack, first, rest, bool(plain), sites)
        found.append(attack.finding(first, check, cause, len(rest)))
    return found


def _ballot(one: Break) -> Ballot:
    assert one.ballot is not None
    return one.ballot


def _kind(one: Break) -> str:
    return _ballot(one).kind


def _plainest(broken: list[Break]) -> Break:
    order = {kind: n for n, kind in enumerate(KINDS)}
    return min(broken, key=lambda one: order.get(_kind(one), len(KINDS)))


def _varies(attack: DictatedAttack) -> bool:
    """Tells whether the views differ from call to call; once the audit is stopped, it answers no without a test."""
    try:
        return attack.harness.varies(attack.threat)
    except Stopped:
        return False


def _simplest(attack: DictatedAttack, broken: list[Break]) -> list[Break]:
    """Breaks of ballots of two classes at the same places, of the same winners and rivals."""
    found: list[Break] = []
    for one in [one for one in broken if _kind(one) in KINDS][:3]:
        tries = [_two_classes(attack, one, one.site.weight - k) for k in (0, 1)]
        found += [broken for broken in tries if broken is not None and broken.patched]
    return found


def _cause(attack: DictatedAttack, first: Break, rest: list[Break], plain: bool, sites: list[Site]) -> tuple[str, str]:
    """The name of the check, and what an experiment showed."""
    harness, one = attack.harness, _ballot(first)
    if all(other.site.weight == harness.total for other in rest):
        if harness.reach == harness.total:
            return "reach", f"one changed pixel alone changes all {harness.total} views"
        return "more than all", f"the patch changes every one of the {harness.total} views"
    if all(_kind(other) not in KINDS for other in rest):
        most = one.before[0]
        fewer = overflow(harness.shown, first.site.touched, most - 1, harness.classes)
        if fewer is not None and attack.cast(fewer, first.site) is None:
            return "counters", f"at {most} votes for one class it falls, at {most - 1} it does not"
        return "votes", ""
    one_rival = "with one rival alone the same lead does not fall; with several it does"
    if all(_ballot(other).tie for other in rest):
        if not attack.certifies(_like(attack, first, one.kind, one.lead - 1), first.site):
            if plain:
                return "tie", "with one vote less for it, it is not certified: only certificates that end in a tie fall"
            if _two_classes(attack, first, one.lead) is None:
                return "tie among rivals", one_rival
        return "votes", ""
    if not plain:
        return ("runner-up", one_rival) if _two_classes(attack, first, one.lead) is None else ("votes", "")
    usual = sorted(site.weight for site in sites)[len(sites) // 2]
    if min(other.site.weight for other in rest if _kind(other) in PLAIN) > usual:
        site = next(site for site in sites if site.weight == usual)
        if all(_two_classes(attack, replace(first, site=site), usual - k) is None for k in (0, 1)):
            at = ", ".join(str(tuple(corner)) for corner in site.corners.tolist())
            return "border", f"a patch at {at} changes only {usual} views, and leads that just turn there do not fall"
    return _counted(attack, first)


def searched(attack: DictatedAttack, found: Break, check: str) -> Finding:
    """The finding of a break that was searched for, named after what plain votes for a rival would not have done."""
    if _varies(attack):
        return attack.finding(found, "votes", _VARIES)
    if not found.patched or found.by_chance:
        return attack.finding(found, "chance" if found.patched else "agreement")
    answers, k, cause = found.answers, found.prediction, ""
    clean = {*attack.harness.shown, *attack.harness.extra(attack.threat)}
    rival = vote(attack.harness.classes, (k,)) if k >= 0 else answers.others
    simple = Answers({key: row for key, row in answers.by_view.items() if key in clean}, rival)
    named = "votes"
    with suppress(Stopped):  # no time to see why
        if _spared(attack, found, _as_votes(attack, answers)):
            named = check if check in ("large scores", "threshold") else "scores"
            cause = "the same answers as plain votes, all with scores of one size, do not break it"
        elif _spared(attack, found, simple):
            named = "other answers"
            cause = f"with every patched view for class {k}, the prediction does not change" if k >= 0 else ""
    return attack.finding(found, named, cause)


def _spared(attack: DictatedAttack, found: Break, answers: Answers) -> bool:
    """Tells whether other answers at the same place do not break it."""
    return answers != found.answers and attack.run(answers, found.site)[1] is None


def _as_votes(attack: DictatedAttack, answers: Answers) -> Answers:
    """The same answers as plain votes: a break by these is no matter of how large scores are."""

    def plain(row: Logits) -> Logits:
        best = () if max(row) == min(row) else tuple(k for k, v in enumerate(row) if v == max(row))
        return vote(attack.harness.classes, best)

    return Answers({key: plain(row) for key, row in answers.by_view.items()}, plain(answers.others))


def _counted(attack: DictatedAttack, first: Break) -> tuple[str, str]:
    """Compares the lead that is certified with the votes that the patch can take, and with those that a patch of
    swapped sides can.
    """
    weight, harness, threat = first.site.weight, attack.harness, attack.threat
    least = _least_lead(attack, first)
    if least is None:
        return "votes", ""
    cause = f"it certifies a lead of {least}, and this patch can turn {weight} views, which takes {2 * weight}"
    turned = PatchThreat(threat.width, threat.height, threat.count)
    if threat.height == threat.width or turned.height > harness.shape[1] or turned.width > harness.shape[2]:
        return "counts", cause
    sites = harness.sites(turned, 12, torch.Generator().manual_seed(sum(harness.shape)))
    heaviest = max(sites, key=lambda site: site.weight)
    other = _least_lead(replace(attack, threat=turned), replace(first, site=heaviest))
    near = other is not None and abs(other - 2 * weight) <= 1 and abs(least - 2 * heaviest.weight) <= 1
    if near and heaviest.weight != weight:
        return "sides", (
            f"{cause}; against {turned}, which can turn {heaviest.weight}, it asks for a lead of {other}: each "
            "patch gets what its sides swapped would need"
        )
    return "counts", cause


def _least_lead(attack: DictatedAttack, first: Break) -> int | None:
    """The least lead of the winner over one rival that is certified, all touched views voting for the winner."""
    weight, total = first.site.weight, attack.harness.total
    low, high = max(0, 2 * weight - total), total
    found: int | None = None
    while found is None or high > low:
        middle = high if found is None else (low + high) // 2
        dictated = _like(attack, first, "lead", middle - weight)
        if attack.certifies(dictated, first.site):
            high = middle
            found = dictated.before[dictated.winner] - dictated.before[dictated.rival]
        elif found is None:
            return None
        else:
            low = middle + 1
    return found


def _two_classes(attack: DictatedAttack, like: Break, lead: int) -> Break | None:
    """Casts a ballot of the winner and the rival alone at the same place."""
    return attack.cast(_like(attack, like, "two classes", lead), like.site)


def _like(attack: DictatedAttack, like: Break, kind: str, lead: int) -> Ballot:
    """A ballot of that kind and lead for the same place, winner and rival."""
    shown, touched = attack.harness.shown, like.site.touched
    c, j = _ballot(like).winner, _ballot(like).rival
    order = (c, j, *(t for t in range(attack.harness.classes) if t not in (c, j)))
    return ballot(kind, shown, touched, [key for key in shown if key not in touched], order, lead)
