"""The operators that are known: with bounds, of what belongs to images; and exactly repeatable, of constants."""

from __future__ import annotations

import torch

from robustpatch.defenses.bounds.elementwise import ARITHMETIC, ELEMENTWISE
from robustpatch.defenses.bounds.movement import MOVEMENT, SEVERAL
from robustpatch.defenses.bounds.products import PRODUCTS

aten = torch.ops.aten

RULES = MOVEMENT | ELEMENTWISE | PRODUCTS
CHECKED = ARITHMETIC | set(PRODUCTS)
"""Operators after which the bounds must be finite: their values may have become infinite, or NaN."""

# Each rounds once or not at all, and so gives the same bits whatever computes it: sums of products would not.
CONSTANT = (
    set(MOVEMENT)
    | set(ELEMENTWISE)
    | {aten.t.default, aten.sqrt.default, aten.reciprocal.default, aten._to_copy.default, aten.div.Tensor}
)


__all__ = ["CHECKED", "CONSTANT", "RULES", "SEVERAL"]
