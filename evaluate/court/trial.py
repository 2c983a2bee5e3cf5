"""A trial: one form of a certifier, first on small images for the smallest counterexample, then by the audit."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from evaluate.audit.adversarial_votes import telling, try_votes
from evaluate.audit.answer_search import AnswerSearch
from evaluate.audit.certifier import Refused
from evaluate.audit.dictated_attack import Break, DictatedAttack
from evaluate.audit.dictated_base import Answers, vote
from evaluate.audit.factory import try_factory
from evaluate.audit.finding import Finding, Tally
from evaluate.audit.harness import Factory, Harness, Site
from evaluate.audit.large_scores import try_large_scores
from evaluate.audit.stopping import Limit, Stopped
from evaluate.audit.threshold_search import thresholds, try_thresholds
from evaluate.court.entry import Entry, Size
from robustpatch.errors import InvalidInput
from robustpatch.threats.parse import threat_from_dict

Verdict = Literal["broken", "held", "not tested"]
_CALLS = 400  # of the search for answers on one small size
_CLASSES = 4  # of the audit's bases


@dataclass(frozen=True)
class Trial:
    """The outcome for one form. `smallest`: the first counterexample on the entry's sizes, simplified; `found`: that of
    the audit. `certified` of `ballots` dictated ones were certified, and attacked.
    `stopped`: why the audit ended before its last step, if it did. `seconds`: of processor time.
    """

    entry: Entry
    form: str
    smallest: Finding | None
    found: Finding | None
    certified: int
    ballots: int
    seconds: float
    stopped: str | None

    @property
    def verdict(self) -> Verdict:
        if self.smallest is not None or self.found is not None:
            return "broken"
        return "held" if self.certified else "not tested"


def try_form(
    entry: Entry,
    form: str,
    seconds: float | None = None,
    budget: int = 5_000,
    seed: int = 0,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Trial:
    """Try to break one form of an entry, within so many `seconds`; the audit ends with the first certificate broken.

    `budget`: of views shown by the audit for each shape and patch.
    """
    factory, limit, total, started = dict(entry.forms)[form], Limit(seconds), Tally(), time.process_time()
    smallest = known = None
    with limit.running():
        try:
            known = written(factory, entry, seed)
            for size in entry.sizes:
                if known is not None and size == size_of(known):
                    break
                on_progress(f"{form}, images of {'x'.join(map(str, size[0]))}")
                smallest = on_size(factory, size, entry.alerts, total, seed)
                if smallest is not None:
                    break
            smallest = smallest or known
            if smallest is None:
                _audit(factory, entry, limit, total, budget, seed, on_progress)
        except Stopped:
            smallest = smallest or known
    broken = [one for one in total.findings if one.severity == "broken certificate" and one is not smallest]
    return Trial(
        entry,
        form,
        smallest,
        broken[0] if broken else None,
        total.certified,
        total.ballots,
        time.process_time() - started,
        None if broken else limit.why,
    )


def _audit(
    factory: Factory,
    entry: Entry,
    limit: Limit,
    total: Tally,
    budget: int,
    seed: int,
    on_progress: Callable[[str], None],
) -> None:
    def step(name: str) -> None:
        on_progress(name)
        if any(one.severity == "broken certificate" for one in total.findings):
            limit.stop("the first finding")

    shape, threat, _ = entry.sizes[-1]
    try_factory(factory, _CLASSES, shape, threat, budget, seed, step, entry.alerts, total)


def on_size(factory: Factory, size: Size, alerts: bool, total: Tally, seed: int) -> Finding | None:
    """The first broken certificate on images of this size, simplified; what is counted goes to `total`."""
    shape, threat, classes = size
    tally = Tally()
    try:
        attack = DictatedAttack(Harness(factory, classes, shape, seed, alerts=alerts), threat, tally)
        if not _certifies_anything(attack):
            return None
        for finding in _searches(attack, seed):
            if finding.severity == "broken certificate":
                return simplified(attack, finding)
    except (Refused, InvalidInput):  # no certifier for such images or patches
        return None
    finally:
        tally.findings = []
        total.add(tally)
    return None


def written(factory: Factory, entry: Entry, seed: int) -> Finding | None:
    """The counterexample that the entry has written down, if it is one."""
    witness = entry.witness
    if witness is None:
        return None
    shape, threat, classes = witness.size
    attack = DictatedAttack(Harness(factory, classes, shape, seed, alerts=entry.alerts), threat, Tally())
    site = attack.harness.site(threat, torch.tensor([witness.corner]))
    attack.harness.dictate(Answers({}, witness.clean[0]))
    new = [key for key in attack.harness.views(site.x_adv) if key not in attack.harness.shown]
    rows = dict(zip(attack.harness.shown, witness.clean, strict=True)) | dict(zip(new, witness.patched, strict=True))
    broken = attack.confirmed(Answers(rows, witness.clean[0]), site)
    return None if broken is None else attack.finding(broken, "witness")


def _certifies_anything(attack: DictatedAttack) -> bool:
    """Tells whether the image is certified for a class that all views say, in plain scores or in large ones."""
    harness, classes = attack.harness, attack.harness.classes
    for c in range(classes):
        for scale in (1.0, 1000.0):
            harness.dictate(Answers({}, vote(classes, (c,), scale)))
            if bool(harness.subject.certify(harness.x, attack.threat).certified[0]):
                return True
    return False


def _searches(attack: DictatedAttack, seed: int) -> Iterator[Finding]:
    """Findings of plain votes, then of scores at thresholds and large ones, then answers searched for."""
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    try_votes(attack, 50 * attack.harness.total, generator)
    yield from attack.tally.findings
    sites = telling(attack.harness.sites(attack.threat, 40, generator), generator)
    if not sites:
        return
    found = thresholds(attack, sites[0])
    for name, search in (
        ("threshold", lambda: try_thresholds(attack, sites, found, _CALLS // 4)),
        ("large scores", lambda: try_large_scores(attack, sites, _CALLS // 4, rng)),
        ("answers", lambda: AnswerSearch(attack, sites, found, _CALLS, rng).run()),
    ):
        broken = search()
        if broken is not None:
            yield attack.finding(broken, name)


def simplified(attack: DictatedAttack, finding: Finding) -> Finding:
    """The same with as many answers as can be turned into a plain vote for the certified class, or for the rival."""
    answers, corners = Answers.of(finding.tensors), finding.tensors["corners"]
    site, own = Site(corners, finding.tensors["x_adv"][None], set(), 0), finding.note["prediction"]
    best = attack.confirmed(answers, site)
    if best is None:
        return finding
    rival = best.prediction if best.prediction >= 0 else (own + 1) % attack.harness.classes
    known = {*attack.harness.shown, *attack.harness.extra(attack.threat)}
    for key in list(answers.by_view):
        for c in (own, rival):
            row = vote(attack.harness.classes, (c,))
            if best.answers.by_view[key] == row:
                break
            simpler = _still(attack, Answers({**best.answers.by_view, key: row}, best.answers.others), site)
            if simpler is not None:
                best = simpler
                break
    plain = Answers(
        {key: row for key, row in best.answers.by_view.items() if key in known}, vote(attack.harness.classes, (rival,))
    )
    best = _still(attack, plain, site) or best
    return replace(attack.finding(best, finding.check), times=finding.times)


def _still(attack: DictatedAttack, answers: Answers, site: Site) -> Break | None:
    found = attack.run(answers, site)[1]
    return found if found is not None and found.patched and not found.by_chance else None


def size_of(finding: Finding) -> Size:
    """Images, patch and classes of a finding."""
    channels, height, width = finding.tensors["x"].shape[-3:]
    threat = threat_from_dict(finding.note["threat"]).threats[0]
    return (channels, height, width), threat, finding.note["classes"]  # pyright: ignore[reportReturnType]
