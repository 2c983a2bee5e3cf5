"""Holds certificates and attacks against each other and reports both accuracies."""

from evaluate.metrics import Summary, summarise
from evaluate.runner import Settings, evaluate

__all__ = ["Settings", "Summary", "evaluate", "summarise"]
