"""The bugs of the planted certifiers, and what the audit says of each. The numbers are those of PITFALLS."""

from __future__ import annotations

from evaluate.selftest.planted import make

__all__ = ["THROUGH_A_FACTORY", "make"]

# name -> the check that names it, through a factory
THROUGH_A_FACTORY = {
    "1 off by one": "counts",
    "2 no wrap in the views": None,  # sound: fewer are touched than counted
    "3 stride": "border",
    "4 tie with another rival": "tie among rivals",
    "ties abstained from": "tie",
    "5 only the runner-up": None,  # of equal rivals argmax is the lowest: sound here, see "4"
    "7 patch sides swapped": "sides",
    "8 a view twice": "border",
    "8 a wider view": "border",
    "9 more than all": "more than all",
    "10 one channel ablated": "reach",
    "11 ablation in place": "inputs",
    "12 predict adds scores": "large scores",
    "12 predict without the last view": "counts",
    "14 blur before ablation": "counts",
    "14 normalised by the image": "reach",
    "16 eight bits": "counters",
    "ties forgotten": "tie",
    "several patches as one": "counts",
    "withdrawn votes only": "counts",
}
