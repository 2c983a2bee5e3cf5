"""Holds certificates and attacks against each other and reports both accuracies."""

from evaluate.batch import Settings
from evaluate.metrics import Summary, summarise
from evaluate.runner import evaluate

__all__ = ["Settings", "Summary", "evaluate", "summarise"]
