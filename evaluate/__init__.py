"""Holds certificates and attacks against each other and reports both accuracies."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evaluate.results.evaluation import Evaluation
    from evaluate.results.metrics import Summary, summarise
    from evaluate.runs.batch import Settings
    from evaluate.runs.runner import evaluate

_HOME = {
    "Evaluation": "results.evaluation",
    "Settings": "runs.batch",
    "Summary": "results.metrics",
    "evaluate": "runs.runner",
    "summarise": "results.metrics",
}

__all__ = ["Evaluation", "Settings", "Summary", "evaluate", "summarise"]


def __getattr__(name: str) -> object:
    """Names are imported when asked for, so that `robustpatch --help` and the shell's completion need no torch."""
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
