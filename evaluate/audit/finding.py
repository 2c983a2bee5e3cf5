"""What an audit found: one finding each, and the report of all of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

Severity = Literal["broken certificate", "inconsistent", "warning"]
Verdict = Literal["broken", "held", "not tested"]


@dataclass(frozen=True)
class Finding:
    """One thing wrong with a certifier, and what shows it again.

    Attributes:
        check: the name of the check that found it.
        severity: "broken certificate" (a certified prediction was changed, or contradicted by `predict`),
            "inconsistent" (the certifier contradicts itself, or what is asked of it) or "warning".
        sentence: what is wrong. times: how often it was seen; the reproducer is of the first time.
        tensors, note: the inputs that show it, and what else is needed. path: the reproducer, once saved.
    """

    check: str
    severity: Severity
    sentence: str
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    note: dict[str, Any] = field(default_factory=dict, compare=False)
    times: int = 1
    path: Path | None = None


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    `verdict` speaks of certificates alone, in the evaluator's words: "broken" when a certified prediction was changed
    or contradicted, "held" when certificates were attacked in vain, "not tested" when there was none to attack.
    `untested` lists what could not be tested, and why. `views`: what a factory's bases were shown, a line each.
    `certified` counts claims put to the test, `attacked` those that an attack was run on.
    """

    name: str
    threat: str
    findings: tuple[Finding, ...]
    untested: tuple[tuple[str, str], ...]
    views: tuple[str, ...]
    images: int
    certified: int
    attacked: int
    ballots: int
    evaluations: int
    seconds: float

    @property
    def verdict(self) -> Verdict:
        if any(finding.severity == "broken certificate" for finding in self.findings):
            return "broken"
        return "held" if self.attacked == self.certified > 0 else "not tested"

    @property
    def failed(self) -> bool:
        """Whether anything but warnings was found."""
        return any(finding.severity != "warning" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: without the tensors, which lie in the reproducers."""
        found = [
            {k: str(v) if k == "path" and v is not None else v for k, v in asdict(bare(finding)).items()}
            for finding in self.findings
        ]
        for one in found:
            del one["tensors"], one["note"]
        rest = {k: v for k, v in vars(self).items() if k not in ("findings", "untested", "views")}
        untested = [{"what": what, "why": why} for what, why in self.untested]
        return {**rest, "verdict": self.verdict, "findings": found, "untested": untested, "views": list(self.views)}


def bare(finding: Finding) -> Finding:
    """The finding without its tensors and note."""
    return replace(finding, tensors={}, note={})


def gather(findings: list[Finding]) -> list[Finding]:
    """One finding for each check and severity, the first of its kind, counting the others; broken ones first."""
    first: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        key = (finding.check, finding.severity)
        first[key] = replace(first[key], times=first[key].times + finding.times) if key in first else finding
    order = ("broken certificate", "inconsistent", "warning")
    return sorted(first.values(), key=lambda finding: order.index(finding.severity))
