"""The largest square patch that the votes certify each image against."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.touched import Touched
from robustpatch.certificates.certificate import Method
from robustpatch.certificates.margins import check_votes, exact_margins, paper_margins
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.votes import Scored, Votes, first_argmax


def largest_certified(
    votes: Votes | Scored, ablation: Ablation, image_size: tuple[int, int], method: Method = "exact"
) -> Int[Tensor, " B"]:
    """The side of the largest square patch against which `method` certifies each image; 0 where there is none.

    A smaller square touches no more at any placement, so the certified sides are exactly 1, …, the one returned. The
    paper's margin needs the counts alone and implies the exact certificate, which is therefore tried from there on,
    side by side, each on the images that have come so far. Raises `InvalidInput`.
    """
    check_method(method)
    check_votes(votes, ablation, image_size)
    prediction = first_argmax(votes.counts)
    ahead = paper_margins(votes, prediction, 0)
    side = torch.zeros_like(prediction)
    sides = range(1, min(image_size) + 1)
    for m in sides:
        certified = ahead >= 2 * votes.unit * int(_square(ablation, m, image_size).sizes.max())
        if not bool(certified.any()):
            break
        side[certified] = m
    for m in sides if method == "exact" else ():
        if not bool((side >= m - 1).any()):
            break
        tried = (side == m - 1).nonzero()[:, 0]
        margins = exact_margins(votes.of(tried), prediction[tried], _square(ablation, m, image_size), 1)
        side[tried[margins.amin(dim=1) >= 0]] = m
    return side


def check_method(method: str) -> None:
    """Refuse anything but "exact" and "margin" with `InvalidInput`."""
    if method not in ("exact", "margin"):
        raise InvalidInput(f'method is {method!r}; use "exact" or "margin"')


@lru_cache(maxsize=64)
def _square(ablation: Ablation, side: int, image_size: tuple[int, int]) -> Touched:
    """The sets that a square touches: read off masks, that can take longer than the certificates of a batch."""
    return ablation.touched(PatchThreat(side, side), *image_size)
