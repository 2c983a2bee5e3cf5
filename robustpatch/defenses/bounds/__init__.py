"""Bounds of what a network computes of any image of a box, in floating point: no rounding of its own leaves them.

`Traced` records the operators that the network runs and keeps the graph; the graph runs, and `bounds` and `margins`
bound, one and the same operators.
"""

from robustpatch.defenses.bounds.call import Box
from robustpatch.defenses.bounds.graph import Graph
from robustpatch.defenses.bounds.propagate import bounds, margins
from robustpatch.defenses.bounds.rounding import flushes_subnormal, sums_of_products
from robustpatch.defenses.bounds.traced import Traced

__all__ = ["Box", "Graph", "Traced", "bounds", "flushes_subnormal", "margins", "sums_of_products"]
