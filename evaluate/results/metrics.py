"""records -> numbers, with exact binomial intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, Literal

import numpy as np

from attacks.occlusion import CONTROLS
from evaluate.runs.records import AttackRecord, Record

LEVEL = 0.001  # a run as bad as that has this chance or less, where the classifier is right: then it is not right
Verdict = Literal["held", "broken", "not tested", "no certificate"]


@dataclass(frozen=True)
class Share:
    """`hits` of `total` images, with the exact (Clopper-Pearson) 95% interval of the underlying share."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        return self.hits / self.total

    @property
    def interval(self) -> tuple[float, float]:
        from scipy.stats import binomtest  # slow to import

        found = binomtest(self.hits, self.total).proportion_ci(0.95, method="exact")
        return float(found.low), float(found.high)


def as_json(value: Any) -> Any:
    """The value as JSON types: a dataclass as a dictionary of its fields, a `Share` with its value and interval."""
    if isinstance(value, dict):
        return {str(key): as_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(one) for one in value]
    if not is_dataclass(value):
        return value
    found = {key: as_json(one) for key, one in vars(value).items()}
    return {**found, "value": value.value, "interval95": list(value.interval)} if isinstance(value, Share) else found


@dataclass(frozen=True)
class AttackSummary:
    """One attack over all images: accuracy left, and the work spent on the images open to it and on certified ones.

    `broken` counts the images classified correctly that it broke; of an ensemble, `members` says how many of them each
    member broke. Open images are not certified: `visited` is the mean share of open placements tried on those.
    """

    accuracy: Share
    broken: int
    open_images: int
    evaluations: int
    certified_images: int
    evaluations_certified: int
    visited: float | None
    out_of_threat: int
    seconds: float
    members: dict[str, int]


@dataclass(frozen=True)
class Gap:
    """The images that neither a proof nor an attack decides, taken apart by the patch that went furthest on each.

    `refuted`: by the vote-level adversary, so that no proof from the votes alone can certify them; the others are not
    certified for their close votes. `turned`: for "5 of 6" (so many of the touched ablations turned to the rival), and
    `missing`: for each number of votes that such a patch falls short by, how many images.
    """

    images: int
    refuted: int
    turned: dict[str, int]
    missing: dict[int, int]


@dataclass(frozen=True)
class Allowance:
    """The number of certified predictions that were `changed`, against the number that chance allows, of a classifier
    that certifies with `confidence`.

    An image is certified and found changed with a chance of at most its own error (see `Record`), over its samples,
    whether many are certified or few: so the count is of all `images`, whose samples are independent where they differ.
    `error`: the largest of any image. `probability`: of so many or more, P(ΣBernoulli(error of image i) ≥ changed), at
    most: what one image may err by is granted to no other. `most`: the largest count for which it
    is not below `LEVEL`; more of them break the verdict. `abstained`: certified images of which the model, declared to
    be randomized, abstained under a patch, which is no change.
    """

    confidence: float
    error: float
    images: int
    changed: int
    most: int
    probability: float
    abstained: int = 0


@dataclass(frozen=True)
class Summary:
    """The findings of a run. `verdict` is "held" only if some image was certified, and every such image was attacked
    and none was changed; of certificates that hold with a confidence, no more than chance allows (`allowance`; None for
    proofs that never err), where it does not allow all of them, and where the judge answered some patched image:
    abstentions alone are no test.

    An image counts as attacked if every attack on it scored it whole, with no placement closed, and, for each threat,
    one that is no control (`attacks.occlusion.Control`) spent evaluations and tried a placement, and a patch of it that
    shows, within the threat, was judged (`AttackRecord.patches`). A control that changes a certified prediction breaks
    it all the same. `certified_patches`: patches judged on certified images, controls' left out. Of a classifier that
    certifies nothing, certified accuracy and the gap are None, and the verdict is "no certificate". `placeless` counts
    the images on which the threat has no place: they need no attack.

    Of a classifier that answers attacks by an alert, certified is detection: under no patch another class, but the
    class or an alert; `false_alerts` are those on clean images, which are wrong answers. None for all others.
    """

    images: int
    clean: Share
    certified_exact: Share | None
    certified_margin: Share | None
    attacks: dict[str, AttackSummary]
    under_all: Share
    under_votes: Share | None
    gap: float | None
    undecided: Gap | None
    verdict: Verdict
    certified_images: int
    certified_attacked: int
    certified_evaluations: int
    certified_patches: int
    violations: list[dict[str, Any]]
    close_votes: int
    votes: int
    allowance: Allowance | None = None
    placeless: int = 0
    false_alerts: Share | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON types."""
        return as_json(self)


def certified_by_size(records: Sequence[Record]) -> dict[int, Share]:
    """Images classified right and certified against the square patch of each side, or the size of the run's growing
    patches: from 1 to one more than the largest of any image. Empty where certificates are not of votes.
    """
    largest = [record.largest_certified for record in records]
    if None in largest:
        return {}
    right = [side or 0 for record, side in zip(records, largest, strict=True) if record.correct]
    return {m: Share(sum(side >= m for side in right), len(records)) for m in range(1, max(right, default=0) + 2)}


def summarise(records: list[Record]) -> Summary:
    """Clean, certified and empirical accuracy of the records, and the verdict on the certificates.

    Empirical accuracy counts the images that are classified correctly and that the attack did not break; certified
    accuracy those classified correctly and certified. The gap is empirical accuracy under all attacks less certified
    accuracy: what neither proof nor attack has decided; `undecided` takes it apart.
    """
    names = dict.fromkeys(attack.attack for record in records for attack in record.attacks)
    standing = [record for record in records if record.correct and not record.broken]
    certified = [record for record in records if record.certified]
    threats = {attack.threat for record in records for attack in record.attacks}
    attacked = [
        record
        for record in certified
        if threats and threats <= record.threats_tested and all(attack.unpruned for attack in record.attacks)
    ]
    exact = _certified(records, [record.certified_exact for record in records])
    allowance = _allowance(records)
    return Summary(
        images=len(records),
        clean=Share(sum(record.correct for record in records), len(records)),
        certified_exact=exact,
        certified_margin=_certified(records, [record.certified_margin for record in records]),
        attacks={name: _of_attack(name, records) for name in names},
        under_all=Share(len(standing), len(records)),
        under_votes=None
        if any(record.refuted is None for record in records)
        else Share(sum(record.correct and not record.refuted for record in records), len(records)),
        gap=None if exact is None else len(standing) / len(records) - exact.value,
        undecided=_undecided(standing, records),
        verdict=_verdict(certified, len(attacked), allowance, exact is None),
        certified_images=len(certified),
        certified_attacked=len(attacked),
        certified_evaluations=sum(attack.evaluations for record in certified for attack in record.attacks),
        certified_patches=sum(record.patches for record in certified),
        violations=[{"index": record.index, "attack": attack} for record in certified for attack in record.violations],
        close_votes=sum(record.close_votes for record in records),
        votes=sum(record.votes for record in records),
        allowance=allowance,
        placeless=sum(record.placeless for record in records),
        false_alerts=None
        if any(record.alerted is None for record in records)
        else Share(sum(bool(record.alerted) for record in records), len(records)),
    )


def _of_attack(name: str, records: list[Record]) -> AttackSummary:
    own = [(record, attack) for record in records for attack in record.attacks if attack.attack == name]
    open_, certified = ([pair for pair in own if pair[0].certified == kind] for kind in (False, True))
    broken: dict[int, AttackRecord] = {}
    for record, attack in own:
        if attack.broken and record.correct:
            broken.setdefault(record.index, attack)
    return AttackSummary(
        accuracy=Share(sum(record.correct and record.index not in broken for record in records), len(records)),
        broken=len(broken),
        open_images=len({record.index for record, _ in open_}),
        evaluations=sum(attack.evaluations for _, attack in open_),
        certified_images=len({record.index for record, _ in certified}),
        evaluations_certified=sum(attack.evaluations for _, attack in certified),
        visited=sum(attack.visited for _, attack in open_) / len(open_) if open_ else None,
        out_of_threat=sum(not (attack.contained and attack.in_range) for _, attack in own),
        seconds=sum(attack.seconds for _, attack in own),
        members=dict(Counter(attack.by for attack in broken.values() if attack.by).most_common()),
    )


def _verdict(certified: list[Record], attacked: int, allowance: Allowance | None, bare: bool) -> Verdict:
    """`bare`: some record has no certificate."""
    improbable = allowance is not None and allowance.probability < LEVEL
    if improbable or any(record.violations for record in certified if record.confidence is None):
        return "broken"
    if bare and not certified:
        return "no certificate"
    if allowance is not None and certified and (allowance.most == allowance.images or _silent(certified)):
        return "not tested"  # no outcome could have been a break, or there was no answer that could have been one
    return "held" if certified and attacked == len(certified) else "not tested"


def _allowance(records: list[Record]) -> Allowance | None:
    """Count the changed certified predictions, where they are certified with a confidence; None where not."""
    random = [record for record in records if record.confidence is not None]
    if not random:
        return None
    errors, number = [record.error or 0.0 for record in random], len(random)
    changed = sum(bool(record.violations) for record in random)
    tail = _tail(errors)
    return Allowance(
        confidence=min(record.confidence or 0.0 for record in random),
        error=max(errors),
        images=number,
        changed=changed,
        most=int((tail >= LEVEL).nonzero()[0].max()),
        probability=float(tail[changed]),
        abstained=sum(record.certified and any(a.forgiven for a in record.attacks) for record in random),
    )


def _tail(errors: list[float]) -> np.ndarray:
    """P(k events or more), for each k from 0 on, of independent ones with these chances: of equal chances the number is
    binomial, and the sum over the different ones is their convolution.
    """
    from scipy.stats import binom  # slow to import

    density = np.ones(1)
    for error, number in sorted(Counter(errors).items()):
        density = np.convolve(density, binom.pmf(np.arange(number + 1), number, error))
    tail = np.cumsum(density[::-1])[::-1].clip(max=1.0)  # the smallest first, so that none of them is lost
    tail[0] = 1.0
    return tail


def _silent(certified: list[Record]) -> bool:
    """Return whether the judge abstained under every patch of an attack, of all certified images."""
    attacks = [attack for record in certified for attack in record.attacks if attack.attack not in CONTROLS]
    return all(attack.forgiven for attack in attacks)


def _undecided(standing: list[Record], records: list[Record]) -> Gap | None:
    """Take the gap apart; None for classifiers without votes, and where nothing was attacked."""
    open_to_both = [record for record in standing if not record.certified]
    best = [
        min((attack for attack in record.attacks if attack.lead is not None), key=lambda a: a.lead or 0, default=None)
        for record in open_to_both
    ]
    if None in best or any(record.refuted is None for record in records):
        return None
    turned = Counter((attack.turned or 0, attack.touched or 0) for attack in best if attack is not None)
    missing = Counter((attack.lead or 0) + 1 for attack in best if attack is not None)
    return Gap(
        images=len(open_to_both),
        refuted=sum(bool(record.refuted) for record in open_to_both),
        turned={f"{some} of {all_}": turned[some, all_] for some, all_ in sorted(turned, reverse=True)},
        missing={votes: missing[votes] for votes in sorted(missing)},
    )


def _certified(records: list[Record], claims: list[bool | None]) -> Share | None:
    """The share classified correctly and certified; None for classifiers that do not offer this certificate."""
    if None in claims:
        return None
    hits = sum(record.correct and bool(claim) for record, claim in zip(records, claims, strict=True))
    return Share(hits, len(records))
