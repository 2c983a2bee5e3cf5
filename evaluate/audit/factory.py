"""A factory's certifiers on images of several shapes, against patches of several shapes."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch

from evaluate.audit.adversarial_votes import Brief, telling, try_votes
from evaluate.audit.answer_search import AnswerSearch
from evaluate.audit.batches import try_batches
from evaluate.audit.certifier import Refused
from evaluate.audit.diagnosis import searched
from evaluate.audit.dictated_attack import DictatedAttack
from evaluate.audit.finding import Tally
from evaluate.audit.harness import Factory, Harness, view_findings
from evaluate.audit.large_scores import try_large_scores
from evaluate.audit.plans import Plan, Shape, plans
from evaluate.audit.threshold_search import thresholds, try_thresholds
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches

_LONG = 560  # views enough for a counter of eight bits to overflow, or one in bfloat16 to lose votes, in two classes


def try_factory(
    factory: Factory,
    classes: int,
    shape: Shape,
    threat: Patches,
    budget: int,
    seed: int,
    on_progress: Callable[[str], None],
    alerts: bool | int = False,
    tally: Tally | None = None,
) -> Tally:
    """Dictate votes on images of `shape`, then on the others of `plans`; what is cheap and likely comes first.

    `budget`: of views shown for each shape and threat. What is found is added to `tally`, so that it is there when
    the audit is stopped. Raises `InvalidInput` where the factory serves no shape at all.
    """
    tally = tally or Tally()
    threat.check_fits(*shape[1:])
    most, chance, refusals, certified = 0, False, list[InvalidInput](), tally.certified
    for plan in plans(shape, threat, _LONG):
        if plan.only_long and most >= _LONG:
            continue
        try:
            harness = Harness(factory, classes, plan.shape, seed, alerts=alerts)
        except InvalidInput as refusal:
            refusals.append(refusal)
            tally.untested.append((f"images of {_text(plan.shape)}", str(refusal)))
            continue
        most, harness.chance = max(most, harness.total), chance
        _try_plan(harness, plan, budget, seed, tally, on_progress)
        chance = harness.chance
    if not most:
        raise refusals[0]
    if most < _LONG:
        tally.untested.append(("counters of eight bits", f"at most {most} views were shown; {_LONG} are needed"))
    tally.untested.append(("counters of more than eight bits", f"at most {most} votes were cast"))
    if tally.certified == certified:
        tally.untested.append(("dictated votes", "not one ballot was certified; name larger images or a smaller patch"))
    return tally


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
    harness: Harness, plan: Plan, budget: int, seed: int, total: Tally, on_progress: Callable[[str], None]
) -> None:
    """Runs all tests of the plan on one harness."""
    said: list[str] = []
    brief: Brief | None = "counters" if plan.only_long else "sizes" if plan.brief else None
    for n, threat in enumerate(plan.fitting):
        generator, tally = torch.Generator().manual_seed(seed), Tally()
        attack = DictatedAttack(harness, threat, tally)
        try:
            on_progress(_step("dictating votes", harness.shape, threat))
            if n == 0:
                tally.findings += view_findings(harness, threat)
            try_votes(attack, budget // plan.share, generator, brief)
            said.append(f"{threat}: {_range(*tally.touched)}, {tally.certified} of {tally.ballots} ballots certified")
            if n == 0 and plan.deep and not harness.varies(threat):
                on_progress(_step("searching answers", harness.shape, threat))
                _search(attack, budget, seed, generator)
            if n == 0 and plan.batches:
                on_progress(_step("asking about batches", harness.shape, threat))
                try_batches(harness, threat, budget, seed, tally)
        except Refused as refusal:
            total.untested.append((f"{threat} patch on {_text(harness.shape)}", str(refusal)))
        finally:  # also when the audit is stopped
            total.add(tally)
    if len(said) > 5:
        said = [*said[:2], f"{len(said) - 3} more patch sizes", said[-1]]
    total.views.append(f"{_text(harness.shape)}: {harness.total} views; touched by " + "; ".join(said))


def _search(attack: DictatedAttack, budget: int, seed: int, generator: torch.Generator) -> None:
    """Scores at thresholds, large ones, and searched answers: each until it breaks a certificate."""
    sites, rng = telling(attack.harness.sites(attack.threat, 40, generator), generator), random.Random(seed)
    calls = max(60, min(1_000, budget // attack.harness.total))
    if not sites:
        return
    found = thresholds(attack, sites[0])
    for name, search in (
        ("threshold", lambda: try_thresholds(attack, sites, found, calls // 4)),
        ("large scores", lambda: try_large_scores(attack, sites, calls // 2, rng)),
        ("answers", lambda: AnswerSearch(attack, sites, found, calls, rng).run()),
    ):
        broken = search()
        if broken is not None:
            attack.tally.findings.append(searched(attack, broken, name))


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _range(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"
