"""A factory's certifiers on images of several shapes, against patches of several shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from evaluate.audit.finding import Finding
from evaluate.audit.hostile import try_votes
from evaluate.audit.interface import Refused
from evaluate.audit.stand import Factory, Stand, view_findings
from robustpatch.errors import InvalidInput
from robustpatch.threat import PatchThreat

Shape = tuple[int, int, int]
_LONG = 300  # views enough for a counter of eight bits to overflow


@dataclass
class Tested:
    """What came of a factory: findings, what was refused, a line for each shape; ballots dictated, and certified."""

    findings: list[Finding] = field(default_factory=list)
    untested: list[tuple[str, str]] = field(default_factory=list)
    views: list[str] = field(default_factory=list)
    ballots: int = 0
    certified: int = 0


def try_factory(
    factory: Factory,
    classes: int,
    shape: Shape,
    threat: PatchThreat,
    budget: int,
    seed: int,
    on_progress: Callable[[str], None],
    tested: Tested | None = None,
) -> Tested:
    """Dictate votes on images of `shape`, on low and on narrow ones, and on long ones where there are few views yet.

    Besides `threat`: a patch of one pixel, one that is low and wide and the same on its side, two patches. `budget`: of
    views shown for each shape and threat. What is found is added to `tested`, so that it is there when the audit is
    stopped. Raises `InvalidInput` where the factory serves no shape at all.
    """
    tested, sound, plain = tested or Tested(), False, (shape, threat)
    threat.check_fits(*shape[1:])
    plans = _plans(shape, threat, budget)
    most, refusals = 0, list[InvalidInput]()
    for size, threats, each in plans:
        if _LONG in size[1:] and most >= _LONG:
            continue
        generator = torch.Generator().manual_seed(seed)
        try:
            stand = Stand(factory, classes, size, seed)
        except InvalidInput as refusal:
            refusals.append(refusal)
            tested.untested.append((f"images of {_text(size)}", str(refusal)))
            continue
        most = max(most, sum(stand.shown.values()))
        sound = _try_shape(stand, threats, each, generator, tested, plain, sound, on_progress)
    if len(refusals) == len(plans):
        raise refusals[0]
    if most < _LONG:
        tested.untested.append(("counters of eight bits", f"at most {most} views were shown; {_LONG} are needed"))
    tested.untested.append(("counters of more than eight bits", f"at most {most} votes were cast"))
    tested.untested = _merged(tested.untested)
    if not tested.certified:
        tested.untested.append(
            ("dictated votes", "not one ballot was certified; name larger images or a smaller patch")
        )
    return tested


def _plans(shape: Shape, threat: PatchThreat, budget: int) -> list[tuple[Shape, list[PatchThreat], int]]:
    """Shapes of images, the patches tried on each, and the views shown for each of those."""
    low, wide = max(1, threat.height // 2), threat.width + 2
    others = [PatchThreat(1, 1), PatchThreat(low, wide), PatchThreat(wide, low), PatchThreat(1, 1, 2)]
    side = max(threat.height, threat.width, wide) + 1
    return [
        (shape, [threat], budget),
        ((shape[0], side, shape[2] + 1), [threat, *others], budget),
        ((shape[0], shape[1] + 3, side), [threat, *others], budget),
        ((shape[0], side, _LONG), [threat], budget // 4),
        ((shape[0], _LONG, side), [threat], budget // 4),
    ]


def steps(shape: Shape, threat: PatchThreat) -> list[str]:
    """What `try_factory` tells `on_progress`, in order, where no shape and no patch is left out."""
    return [_step(size, one) for size, threats, _ in _plans(shape, threat, 0) for one in dict.fromkeys(threats)]


def _step(size: Shape, threat: PatchThreat) -> str:
    return f"dictating votes: {_text(size)}, {threat} patch"


def _try_shape(
    stand: Stand,
    threats: list[PatchThreat],
    budget: int,
    generator: torch.Generator,
    tested: Tested,
    plain: tuple[Shape, PatchThreat],
    sound: bool,
    on_progress: Callable[[str], None],
) -> bool:
    """Whether the patch asked about has stood on images of the `plain` shape, now or before."""
    size, total, said = stand.shape, sum(stand.shown.values()), []
    for n, threat in enumerate(dict.fromkeys(threats)):
        if threat.height > size[1] or threat.width > size[2]:
            continue
        on_progress(_step(size, threat))
        try:
            if n == 0:
                tested.findings += view_findings(stand, threat)
            tally = try_votes(stand, threat, budget, generator)
        except Refused as refusal:
            tested.untested.append((f"{threat} patch on {_text(size)}", str(refusal)))
            continue
        tested.ballots, tested.certified = tested.ballots + tally.ballots, tested.certified + tally.certified
        sound |= (size, threat) == plain and tally.certified > 0 and not tally.findings
        (_, tall, wide), asked = plain
        turned = (threat.height == threat.width, size[1] == size[2]) != (asked.height == asked.width, tall == wide)
        counted = [one for one in tally.findings if one.check in ("counts", "border", "agreement", "more than all")]
        if counted and sound and turned:
            why = f"{asked} patches on {_text(plain[0])} stand, so height and width may be swapped"
            tally.findings = [
                replace(one, check="sides", sentence=f"{one.sentence}; {why}") if one in counted else one
                for one in tally.findings
            ]
        tested.findings += tally.findings
        said.append(f"{threat}: {_range(tally.touched)}, {tally.certified} of {tally.ballots} ballots certified")
    tested.views.append(f"{_text(size)}: {total} views; touched by " + "; ".join(said))
    return sound


def _merged(untested: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What has one reason on one line."""
    reasons: dict[str, list[str]] = {}
    for what, why in untested:
        reasons.setdefault(why, []).append(what)
    return [(", ".join(what), why) for why, what in reasons.items()]


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _range(touched: tuple[int, int]) -> str:
    return str(touched[0]) if touched[0] == touched[1] else f"{touched[0]} to {touched[1]}"
