"""One question that a self-test asks of a machine, and the answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """`passed`: None of what is told and not judged."""

    name: str
    passed: bool | None
    told: str = ""

    def __str__(self) -> str:
        verdict = {True: "pass", False: "FAIL", None: "note"}[self.passed]
        return f"{verdict}  {self.name}" + f": {self.told}" * bool(self.told)
