"""A factory's certifiers on images of several shapes, against patches of several shapes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from evaluate.audit.adversarial_votes import Brief, telling, try_votes
from evaluate.audit.batches import try_batches
from evaluate.audit.causes import searched
from evaluate.audit.edges import edges, try_edges
from evaluate.audit.finding import Finding
from evaluate.audit.harness import Factory, Stand, view_findings
from evaluate.audit.interface import Refused
from evaluate.audit.loud import try_loud
from evaluate.audit.search import Search
from evaluate.audit.sizes import Plan, Shape, plans
from evaluate.audit.trial import Tally
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches

_LONG = 560  # views enough for a counter of eight bits to overflow, or one in bfloat16 to lose votes, in two classes


@dataclass
class Tested:
    """The result of testing a factory: findings, skipped tests, the certifier's errors and how often it raised them,
    a line for each shape; ballots dictated, and certified.
    """

    findings: list[Finding] = field(default_factory=list)
    untested: list[tuple[str, str]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    views: list[str] = field(default_factory=list)
    ballots: int = 0
    certified: int = 0

    @property
    def not_tested(self) -> list[tuple[str, str]]:
        """Lists what was not tested, one line for each reason."""
        reasons: dict[str, list[str]] = {}
        for what, why in self.untested:
            reasons.setdefault(why, []).append(what)
        for why, times in self.refused.items():
            reasons.setdefault(why, []).append(f"{times} questions" if times > 1 else "1 question")
        return [(", ".join(what), why) for why, what in reasons.items()]


def try_factory(
    factory: Factory,
    classes: int,
    shape: Shape,
    threat: Patches,
    budget: int,
    seed: int,
    on_progress: Callable[[str], None],
    alerts: bool | int = False,
    tested: Tested | None = None,
) -> Tested:
    """Dictate votes on images of `shape`, then on the others of `plans`; what is cheap and likely comes first.

    `budget`: of views shown for each shape and threat. What is found is added to `tested`, so that it is there when
    the audit is stopped. Raises `InvalidInput` where the factory serves no shape at all.
    """
    tested = tested or Tested()
    threat.check_fits(*shape[1:])
    most, served, chance, refusals = 0, 0, False, list[InvalidInput]()
    for plan in plans(shape, threat, _LONG):
        if plan.only_long and most >= _LONG:
            continue
        try:
            stand = Stand(factory, classes, plan.shape, seed, alerts=alerts)
        except InvalidInput as refusal:
            refusals.append(refusal)
            tested.untested.append((f"images of {_text(plan.shape)}", str(refusal)))
            continue
        served, most, stand.chance = served + 1, max(most, sum(stand.shown.values())), chance
        _try_plan(stand, plan, budget, seed, tested, on_progress)
        chance = stand.chance
    if not served:
        raise refusals[0]
    if most < _LONG:
        tested.untested.append(("counters of eight bits", f"at most {most} views were shown; {_LONG} are needed"))
    tested.untested.append(("counters of more than eight bits", f"at most {most} votes were cast"))
    if not tested.certified:
        tested.untested.append(
            ("dictated votes", "not one ballot was certified; name larger images or a smaller patch")
        )
    return tested


def steps(shape: Shape, threat: Patches) -> list[str]:
    """Lists the steps that `try_factory` reports to `on_progress`, in order, where nothing is left out."""
    found: list[str] = []
    for plan in plans(shape, threat, _LONG):
        for n, one in enumerate(plan.fitting):
            found.append(_step("dictating votes", plan.shape, one))
            found += [_step("searching answers", plan.shape, one)] if n == 0 and plan.deep else []
            found += [_step("asking about batches", plan.shape, one)] if n == 0 and plan.batches else []
    return found


def _step(what: str, size: Shape, threat: Patches) -> str:
    return f"{what}: {_text(size)}, {threat} patch"


def _try_plan(
    stand: Stand, plan: Plan, budget: int, seed: int, tested: Tested, on_progress: Callable[[str], None]
) -> None:
    """All that the plan says, on one stand."""
    total, said = sum(stand.shown.values()), []
    brief: Brief | None = "counters" if plan.only_long else "sizes" if plan.brief else None
    for n, threat in enumerate(plan.fitting):
        generator, tally = torch.Generator().manual_seed(seed), Tally()
        try:
            on_progress(_step("dictating votes", stand.shape, threat))
            if n == 0:
                tally.findings += view_findings(stand, threat)
            try_votes(stand, threat, budget // plan.share, generator, brief, tally)
            said.append(f"{threat}: {_range(tally.touched)}, {tally.certified} of {tally.ballots} ballots certified")
            if n == 0 and plan.deep and not stand.varies(threat):
                on_progress(_step("searching answers", stand.shape, threat))
                _search(stand, threat, budget, seed, generator, tally)
            if n == 0 and plan.batches:
                on_progress(_step("asking about batches", stand.shape, threat))
                try_batches(stand, threat, budget, seed, tally)
        except Refused as refusal:
            tested.untested.append((f"{threat} patch on {_text(stand.shape)}", str(refusal)))
        finally:  # also when the audit is stopped
            _count(tested, tally)
    if len(said) > 5:
        said = [*said[:2], f"{len(said) - 3} more patch sizes", said[-1]]
    tested.views.append(f"{_text(stand.shape)}: {total} views; touched by " + "; ".join(said))


def _search(stand: Stand, threat: Patches, budget: int, seed: int, generator: torch.Generator, tally: Tally) -> None:
    """Scores at thresholds, loud ones, and searched answers: each until it breaks a certificate."""
    sites, rng = telling(stand.sites(threat, 40, generator), generator), random.Random(seed)
    calls = max(60, min(1_000, budget // sum(stand.shown.values())))
    if not sites:
        return
    found = edges(stand, threat, sites[0], tally)
    fall = try_edges(stand, threat, sites, found, calls // 4, tally)
    if fall is not None:
        tally.findings.append(searched(stand, threat, fall, "threshold", tally))
    loud = try_loud(stand, threat, sites, calls // 2, rng, tally)
    if loud is not None:
        tally.findings.append(searched(stand, threat, loud, "loudness", tally))
    fall = Search(stand, threat, sites, found, calls, rng, tally).run()
    if fall is not None:
        tally.findings.append(searched(stand, threat, fall, "answers", tally))


def _count(tested: Tested, tally: Tally) -> None:
    tested.findings += tally.findings
    tested.ballots, tested.certified = tested.ballots + tally.ballots, tested.certified + tally.certified
    tested.refused.update(tally.refused)


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _range(touched: tuple[int, int]) -> str:
    return str(touched[0]) if touched[0] == touched[1] else f"{touched[0]} to {touched[1]}"
