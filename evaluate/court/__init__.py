"""The court: certifiers of the literature, each as published and, where that is unsound, repaired, and their trials."""

from evaluate.court.docket import DOCKET
from evaluate.court.entry import Entry

__all__ = ["DOCKET", "Entry"]
