"""Holds certificates and attacks against each other and reports both accuracies."""

from evaluate.results.metrics import Summary, summarise
from evaluate.runs.batch import Settings
from evaluate.runs.runner import evaluate

__all__ = ["Settings", "Summary", "evaluate", "summarise"]
