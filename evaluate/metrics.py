"""records -> numbers, with exact binomial intervals."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from scipy.stats import binomtest

from evaluate.records import Record

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
        found = binomtest(self.hits, self.total).proportion_ci(0.95, method="exact")
        return float(found.low), float(found.high)

    def as_dict(self) -> dict[str, Any]:
        return {"hits": self.hits, "total": self.total, "value": self.value, "interval95": list(self.interval)}


@dataclass(frozen=True)
class AttackSummary:
    """One attack over all images: accuracy left, and the work spent on the images open to it and on certified ones.

    `visited` is the mean share of open placements tried on the images that are not certified.
    """

    accuracy: Share
    evaluations: int
    evaluations_certified: int
    visited: float | None
    out_of_threat: int
    seconds: float


@dataclass(frozen=True)
class Summary:
    """What a run found. `verdict` is "held" only if every certified image was attacked and none was changed.

    An image counts as attacked if every attack on it scored it whole, with no placement closed, and, for each threat,
    one spent evaluations and proposed a patch within the threat. Of a classifier that certifies nothing, certified
    accuracy and the gap are None, and the verdict is "no certificate".
    """

    images: int
    clean: Share
    certified_exact: Share | None
    certified_margin: Share | None
    attacks: dict[str, AttackSummary]
    under_all: Share
    gap: float | None
    verdict: Verdict
    certified_images: int
    certified_attacked: int
    certified_evaluations: int
    violations: list[dict[str, Any]]
    close_votes: int
    votes: int

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON types."""
        out = {key: value.as_dict() if isinstance(value, Share) else value for key, value in vars(self).items()}
        out["attacks"] = {
            name: {**asdict(attack), "accuracy": attack.accuracy.as_dict()} for name, attack in self.attacks.items()
        }
        return out


def summarise(records: list[Record]) -> Summary:
    """Clean, certified and empirical accuracy of the records, and the verdict on the certificates.

    Empirical accuracy counts the images that are classified correctly and that the attack did not break; certified
    accuracy those classified correctly and certified. The gap is empirical accuracy under all attacks less certified
    accuracy: what neither proof nor attack has decided.
    """
    total = len(records)
    names = list(dict.fromkeys(attack.attack for record in records for attack in record.attacks))
    attacks = {}
    for name in names:
        own = [(record, attack) for record in records for attack in record.attacks if attack.attack == name]
        broken = {record.index for record, attack in own if attack.broken and record.correct}
        visited = [attack.visited for record, attack in own if not record.certified]
        attacks[name] = AttackSummary(
            accuracy=Share(sum(record.correct and record.index not in broken for record in records), total),
            evaluations=sum(attack.evaluations for record, attack in own if not record.certified),
            evaluations_certified=sum(attack.evaluations for record, attack in own if record.certified),
            visited=sum(visited) / len(visited) if visited else None,
            out_of_threat=sum(not (attack.contained and attack.in_range) for _, attack in own),
            seconds=sum(attack.seconds for _, attack in own),
        )
    standing = sum(record.correct and not any(attack.broken for attack in record.attacks) for record in records)
    certified = [record for record in records if record.certified]
    threats = {attack.threat for record in records for attack in record.attacks}
    attacked = [
        record
        for record in certified
        if threats and threats <= record.threats_tested and all(attack.unpruned for attack in record.attacks)
    ]
    violations = [{"index": record.index, "attack": attack} for record in certified for attack in record.violations]
    exact = _certified(records, [record.certified_exact for record in records])
    verdict: Verdict = "held" if len(attacked) == len(certified) else "not tested"
    if violations:
        verdict = "broken"
    elif exact is None and not certified:
        verdict = "no certificate"
    return Summary(
        images=total,
        clean=Share(sum(record.correct for record in records), total),
        certified_exact=exact,
        certified_margin=_certified(records, [record.certified_margin for record in records]),
        attacks=attacks,
        under_all=Share(standing, total),
        gap=None if exact is None else standing / total - exact.value,
        verdict=verdict,
        certified_images=len(certified),
        certified_attacked=len(attacked),
        certified_evaluations=sum(attack.evaluations for record in certified for attack in record.attacks),
        violations=violations,
        close_votes=sum(record.close_votes for record in records),
        votes=sum(record.votes for record in records),
    )


def _certified(records: list[Record], claims: list[bool | None]) -> Share | None:
    """The share classified correctly and certified; None for classifiers that do not offer this certificate."""
    if None in claims:
        return None
    hits = sum(record.correct and bool(claim) for record, claim in zip(records, claims, strict=True))
    return Share(hits, len(records))
