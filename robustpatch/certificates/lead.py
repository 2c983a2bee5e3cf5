"""The lead of one class over another: votes and the tie rule, as every certificate and every judge of votes counts it.

Class c comes before class j iff n_c > n_j, or n_c = n_j and c < j: the lowest index wins ties. In integers:

    lead = n_c - n_j - [j < c] ≥ 0.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

FAR = {kind: torch.iinfo(kind).max // 2 for kind in (torch.int32, torch.int64)}  # beyond all leads, and can be added to


def lead(
    own: Int[Tensor, "*any"],
    rivals: Int[Tensor, "*any J"],
    c: Int[Tensor, "..."],
    number: Int[Tensor, " J"] | None = None,
) -> Int[Tensor, "*any J"]:
    """n_c - n_j - [j < c] for each rival j: c comes before j iff it is ≥ 0. For j = c itself `FAR` of the dtype.

    `own` are counts of class c; `rivals` those of the classes in `number`, by default 0, …, J - 1; `c` may have axes of
    length one where `own` has longer ones. All counts have the dtype of `own`, int32 or int64.
    """
    number = torch.arange(rivals.shape[-1], device=rivals.device) if number is None else number
    c = c[..., None]
    return (own[..., None] - rivals - (number < c).to(own.dtype)).masked_fill(number == c, FAR[own.dtype])


def least_lead(counts: Int[Tensor, "B K"], c: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The lead of c over its strongest rival in each image: c is the most voted class iff it is ≥ 0."""
    return lead(counts.gather(1, c[:, None])[:, 0], counts, c).amin(dim=1)


def ranks(counts: Int[Tensor, "B K"], y: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The number of classes that come before y in each image; 0 where y is the prediction."""
    return (lead(counts.gather(1, y[:, None])[:, 0], counts, y) < 0).sum(dim=1)
