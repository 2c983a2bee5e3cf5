"""The findings of an audit, its counts while it runs, and its result."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
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

    def is_of(self, threats: set[str], shapes: set[str]) -> bool:
        """Tells whether one of these patches on images of one of these shapes shows it."""
        return self.where is not None and self.where[0] in threats and self.where[1] in shapes


@dataclass
class Tally:
    """Findings and counts of an audit while it runs. Tests add to it at once, so that a stopped audit loses nothing.

    `untested`: pairs of what was not tested and why. `refused`: how often the certifier raised which error. `views`: a
    line for each image shape. `touched`: the fewest and the most views that a patch changes.
    """

    findings: list[Finding] = field(default_factory=list)
    untested: list[tuple[str, str]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    views: list[str] = field(default_factory=list)
    images: int = 0
    ballots: int = 0
    certified: int = 0
    attacked: int = 0
    evaluations: int = 0
    touched: tuple[int, int] = (0, 0)

    def add(self, other: Tally) -> None:
        """Adds what a factory's tests counted."""
        self.findings += other.findings
        self.ballots, self.certified = self.ballots + other.ballots, self.certified + other.certified
        self.attacked += other.attacked
        self.refused.update(other.refused)

    @property
    def not_tested(self) -> tuple[tuple[str, str], ...]:
        """The untested things: an entry (things, reason) for each reason."""
        reasons: dict[str, list[str]] = {}
        for what, why in dict.fromkeys(self.untested):
            reasons.setdefault(why, []).append(what)
        for why, times in self.refused.items():
            reasons.setdefault(why, []).append(f"{times} questions" if times > 1 else "1 question")
        return tuple((", ".join(what), why) for why, what in reasons.items())


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
        """The audit for JSON, without the tensors, which lie in the reproducers."""
        found = []
        for one in self.findings:
            told = {name: getattr(one, name) for name in ("check", "severity", "sentence", "times")}
            patch, shape = one.where or (None, None)
            found.append({**told, "path": one.path and str(one.path), "patch": patch, "shape": shape})
        untested = [{"what": what, "why": why} for what, why in self.untested]
        return {**vars(self), "verdict": self.verdict, "findings": found, "untested": untested}


def gather(findings: list[Finding], threats: set[str], shapes: set[str]) -> list[Finding]:
    """One finding for each check and severity, the first of its kind, counting the others: broken ones before others,
    and those of the patches and the images that were named before those of others.
    """
    first: dict[tuple[str, str], Finding] = {}
    for finding in sorted(findings, key=lambda finding: not finding.is_of(threats, shapes)):
        key = (finding.check, finding.severity)
        first[key] = replace(first[key], times=first[key].times + finding.times) if key in first else finding
    order = ("broken certificate", "inconsistent", "warning")
    return sorted(first.values(), key=lambda one: (order.index(one.severity), not one.is_of(threats, shapes)))
