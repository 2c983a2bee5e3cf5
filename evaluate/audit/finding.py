"""The findings of an audit, and the report of all of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from robustpatch.threats.parse import threat_from_dict

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

    @property
    def where(self) -> tuple[str, str] | None:
        """The patch and the shape of the images that show it, "5x5" and "1x28x28", where it has both."""
        if "threat" not in self.note or "x" not in self.tensors:
            return None
        return str(threat_from_dict(self.note["threat"])), "x".join(map(str, self.tensors["x"].shape[-3:]))


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    `verdict` speaks of certificates alone, in the evaluator's words: "broken" when a certified prediction was changed
    or contradicted, "held" when certificates were attacked in vain, "not tested" when there was none to attack.
    `untested` lists what could not be tested, and why. `views`: what a factory's bases were shown, a line each.
    `certified` counts claims put to the test, `attacked` those that an attack was run on. `shape`: of the images that
    the named patch was tried on. `named`: whether that patch on those broke a certificate. `stopped`: what ended the
    audit before its end, and then nothing is "held".
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
    shape: str = ""
    named: bool = False
    stopped: str | None = None

    @property
    def verdict(self) -> Verdict:
        if any(finding.severity == "broken certificate" for finding in self.findings):
            return "broken"
        return "held" if self.attacked == self.certified > 0 and self.stopped is None else "not tested"

    @property
    def failed(self) -> bool:
        """Tells whether anything but warnings was found."""
        return any(finding.severity != "warning" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: without the tensors, which lie in the reproducers."""
        found = [
            {k: str(v) if k == "path" and v is not None else v for k, v in asdict(bare(finding)).items()}
            for finding in self.findings
        ]
        for one, finding in zip(found, self.findings, strict=True):
            del one["tensors"], one["note"]
            one["patch"], one["shape"] = finding.where or (None, None)
        rest = {k: v for k, v in vars(self).items() if k not in ("findings", "untested", "views")}
        untested = [{"what": what, "why": why} for what, why in self.untested]
        return {**rest, "verdict": self.verdict, "findings": found, "untested": untested, "views": list(self.views)}


def bare(finding: Finding) -> Finding:
    """The finding without its tensors and note."""
    return replace(finding, tensors={}, note={})


def is_named(finding: Finding, threats: set[str], shapes: set[str]) -> bool:
    """Whether the finding is of a patch and of images that the audit was asked about."""
    return finding.where is not None and finding.where[0] in threats and finding.where[1] in shapes


def gather(findings: list[Finding], threats: set[str], shapes: set[str]) -> list[Finding]:
    """One finding for each check and severity, the first of its kind, counting the others: broken ones before others,
    and those of the patches and the images that were named before those of others.
    """

    def named(finding: Finding) -> bool:
        return is_named(finding, threats, shapes)

    first: dict[tuple[str, str], Finding] = {}
    for finding in sorted(findings, key=lambda finding: not named(finding)):
        key = (finding.check, finding.severity)
        first[key] = replace(first[key], times=first[key].times + finding.times) if key in first else finding
    order = ("broken certificate", "inconsistent", "warning")
    return sorted(first.values(), key=lambda finding: (order.index(finding.severity), not named(finding)))
