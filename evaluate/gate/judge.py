"""Rules and runs -> lines, each passed or failed. No file is touched, and no model asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluate.gate.answers import Answers
from evaluate.gate.paired import POWER, Drop, images_needed, least_drop, power
from evaluate.gate.rules import EACH, Baseline, Floor, Gate
from evaluate.results.metrics import Share
from robustpatch.errors import InvalidInput


@dataclass(frozen=True)
class Line:
    """The verdict of one rule. `rule` names its kind (floor, verdict, baseline, convert), `name` what it is about,
    `found` what there is, `wanted` what has to be; `why` says more, or nothing.
    """

    rule: str
    name: str
    passed: bool
    found: str
    wanted: str
    why: str = ""

    def __str__(self) -> str:
        more = f" ({self.why})" if self.why else ""
        return f"{'pass' if self.passed else 'FAIL'}  {self.name}: {self.found}, {self.wanted}{more}"


def judge(gate: Gate, runs: Sequence[Answers], baseline: Answers | None = None) -> list[Line]:
    """Hold runs, each against its own threat, and the stored one against the rules. Raises `InvalidInput` where a rule
    asks for what no run tells, and for runs that cannot be compared.
    """
    lines = [_verdict(run, gate.held, len(runs) > 1) for run in runs]
    for number, floor in enumerate(gate.floors, 1):
        lines += _floor(floor, runs, f"[[floor]] {number}")
    if gate.baseline is not None and baseline is not None:
        same = [run for run in runs if run.threat == baseline.threat]
        if len(same) != 1:
            raise InvalidInput(
                f"baseline {baseline.name} is against {baseline.threat}, as {len(same)} of the runs are; store a run "
                "against the same threat on the same images"
            )
        lines += against(gate.baseline, same[0], baseline)
    return lines


def _verdict(run: Answers, held: bool, several: bool) -> Line:
    name = f"verdict, {run.threat}" if several else "verdict"
    fine = ("held",) if held else ("held", "not tested", "no certificate")
    wanted = "every certificate attacked, and none broken" if held else "no certificate broken"
    return Line("verdict", name, run.verdict in fine, run.verdict, f"wanted: {wanted}")


def _floor(floor: Floor, runs: Sequence[Answers], where: str) -> list[Line]:
    run, kept = _answers(floor, runs, where)
    what = f"certified against {floor.side}x{floor.side}" if floor.side is not None else floor.measure
    what += f", {floor.threat or run.threat}" if floor.threat or (len(runs) > 1 and floor.side is None) else ""
    if floor.label is None:
        return [_reached(floor, what, kept)]
    if floor.label == EACH:
        numbers = sorted(set(run.labels.tolist()))
    elif floor.label in run.classes:
        numbers = [run.classes.index(floor.label)]
    else:
        raise InvalidInput(f"{where}: label is {floor.label!r}; the run has {', '.join(run.classes)}, or take {EACH!r}")
    lines = []
    for number in numbers:
        of = kept[run.labels == number]
        if not len(of):
            raise InvalidInput(f"{where}: label is {floor.label!r}, of which {run.name} has no image; take another")
        called = run.classes[number] if number < len(run.classes) else str(number)
        lines.append(_reached(floor, f"{what}, class {called}", of))
    return lines


def _answers(floor: Floor, runs: Sequence[Answers], where: str) -> tuple[Answers, np.ndarray]:
    """The run that a floor is about, and its images that have what it asks for."""
    if floor.side is not None:
        for run in runs:
            if run.largest is not None:
                return run, run.largest >= floor.side
        raise InvalidInput(
            f"{where}: side is {floor.side}, but no run tells of the largest certified square; leave it "
            "out, or take a classifier that casts votes"
        )
    fitting = [run for run in runs if floor.threat in (None, run.threat)]
    if floor.measure == "under attack" and not fitting:
        for run in runs:
            if floor.threat in run.alternatives:
                return run, run.alternatives[floor.threat]
    if len(fitting) != 1:
        known = ", ".join(
            dict.fromkeys([*(run.threat for run in runs), *(t for run in runs for t in run.alternatives)])
        )
        raise InvalidInput(
            f"{where}: threat is {floor.threat}, which {len(fitting)} of {len(runs)} runs are against ({known}); name "
            "one of these"
        )
    kept = fitting[0].kept.get(floor.measure)
    if kept is None:
        raise InvalidInput(
            f"{where}: measure is {floor.measure!r}, of which {fitting[0].name} says nothing; leave it out"
        )
    return fitting[0], kept


def _reached(floor: Floor, name: str, kept: np.ndarray) -> Line:
    share = Share(int(kept.sum()), len(kept))
    low, high = share.interval
    value, what = (low, "the interval's lower end") if floor.bound else (share.value, "the share")
    found = f"{100 * share.value:.2f}% of {share.total} images ({100 * low:.2f} to {100 * high:.2f})"
    # Of whole images no rounding is to be held against a floor that they reach.
    passed = 100 * value >= floor.least - (0 if floor.bound else 1e-9)
    return Line("floor", name, passed, found, f"wanted: at least {floor.least:g}%" + f" by {what}" * floor.bound)


def against(rule: Baseline, run: Answers, stored: Answers) -> list[Line]:
    """Hold a run against a stored one, image for image. Raises `InvalidInput` where they are not of the same images, or
    were asked other things.
    """
    if run.images != stored.images or len(run.labels) != len(stored.labels):
        raise InvalidInput(f"baseline {stored.name} is of other images than {run.name}; store a run on the same ones")
    differing = [key for key in run.asked if run.asked[key] != stored.asked.get(key)]
    asked = [key for key in differing if key == "top_k" or "under attack" in rule.measures]
    if asked:
        raise InvalidInput(
            f"baseline {stored.name} was run with another {', '.join(asked)} than {run.name}; repeat it with the same"
        )
    lines = []
    for measure in rule.measures:
        ours, theirs = run.kept.get(measure), stored.kept.get(measure)
        if ours is None or theirs is None:
            told = run.name if ours is None else stored.name
            raise InvalidInput(f"baseline: measures has {measure!r}, of which {told} says nothing; leave it out")
        lost, gained = int((theirs & ~ours).sum()), int((ours & ~theirs).sum())
        lines.append(_paired(measure, Drop(lost, gained, len(ours), rule.below / 100), rule))
    return lines


def _paired(measure: str, drop: Drop, rule: Baseline) -> Line:
    level, allowed = rule.level / len(rule.measures), rule.below / 100
    more = f" by more than {rule.below:g} points" if rule.below else ""
    found = f"{drop.lost} images lost, {drop.gained} gained of {drop.images} ({0 - drop.points:+.2f} points)"
    wanted = f"wanted: no fall{more} at level {level:g}"
    name = f"{measure}, against the baseline"
    if drop.is_seen(level):
        return Line("baseline", name, False, found, wanted)
    if rule.catch is None:
        least = least_drop(drop.differing, drop.images, level, allowed)
        seen = "too few images differ to see any" if least is None else f"{100 * least:.2f} points would be seen by 95%"
        return Line("baseline", name, True, found, wanted, seen)
    # Where few images differ, a fall by so much makes more of them differ.
    catch = rule.catch / 100
    differing = max(drop.differing, catch)
    if power(catch, differing, drop.images, level, allowed) >= POWER:
        return Line("baseline", name, True, found, wanted, f"a fall by {rule.catch:g} points would be seen by 95%")
    needed = images_needed(catch, differing, level, allowed)
    few = f"a fall by {rule.catch:g} points would be missed too often: "
    few += "allow less" if needed is None else f"about {needed:,} images are needed"
    return Line("baseline", name, False, found, wanted, few)
