"""A run as a gate sees it: of each image, whether it is right, certified, and still right under attack."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evaluate.compare import MEASURES
from evaluate.results.metrics import summarise
from evaluate.runs.completed_run import CompletedRun

_OF_COMPARE = {"under attack": "under all attacks", "certified": "certified (exact)"}


@dataclass(frozen=True)
class Answers:
    """One run. Of n images: `labels`, Int[n]; `kept`, by measure, Bool[n]: the images that have it, none where the run
    says nothing of it; `alternatives`: under attack, by threat of several; `largest`, Int[n]: the side of the largest
    square that is certified where the image is classified rightly, else 0, or None.
    """

    name: str
    threat: str
    images: str
    classes: tuple[str, ...]
    labels: np.ndarray
    kept: dict[str, np.ndarray]
    alternatives: dict[str, np.ndarray] = field(default_factory=dict)
    largest: np.ndarray | None = None
    verdict: str = "held"
    asked: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, run: CompletedRun) -> Answers:
        """Read off a finished run."""
        records, claim = run.records, run.claim
        kept = {}
        for name in ("clean", "certified", "certified (margin)", "under attack"):
            found = [MEASURES[_OF_COMPARE.get(name, name)](record) for record in records]
            if None not in found and (name != "under attack" or claim.get("attacks")):
                kept[name] = np.array(found, bool)
        correct = np.array([record.correct for record in records])
        threats = {attack.threat for record in records for attack in record.attacks}
        alternatives = {
            one: correct & ~np.array([any(a.broken and a.threat == one for a in r.attacks) for r in records])
            for one in sorted(threats)
        }
        sides = [record.largest_certified for record in records]
        return cls(
            name=run.output,
            threat=str(claim["threat"]),
            images=str(claim["images_sha256"]),
            classes=tuple(map(str, claim.get("class_names", ()))),
            labels=np.array([record.label for record in records]),
            kept=kept,
            alternatives=alternatives,
            largest=None if None in sides else np.where(correct, np.array(sides), 0),
            verdict=summarise(records).verdict,
            asked={key: claim.get(key) for key in ("top_k", "attacks", "certified_budget")},
        )
