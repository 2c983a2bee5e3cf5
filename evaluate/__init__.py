"""Holds certificates and attacks against each other and reports both accuracies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustpatch.late import from_homes

if TYPE_CHECKING:
    from evaluate.results.metrics import Summary, summarise
    from evaluate.runs.batch import Settings
    from evaluate.runs.runner import evaluate

__all__ = ["Settings", "Summary", "evaluate", "summarise"]

_HOME = {"results.metrics": ("Summary", "summarise"), "runs.batch": ("Settings",), "runs.runner": ("evaluate",)}
__getattr__ = from_homes(__name__, _HOME)
