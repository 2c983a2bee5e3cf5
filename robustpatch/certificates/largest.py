"""The largest patch of growing ones - squares, discs, a scaled mask - that the votes certify each image against."""

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
from robustpatch.threats.base import Patches, Threat
from robustpatch.threats.growing import Growing, squares
from robustpatch.voting.votes import Scored, Votes, first_argmax

_KEPT = 2**22  # pixels of all masks together up to which sets of other shapes than rectangles are kept


def largest_certified(
    votes: Votes | Scored,
    ablation: Ablation,
    image_size: tuple[int, int],
    method: Method = "exact",
    growing: Growing = squares,
) -> Int[Tensor, " B"]:
    """The largest n such that `method` certifies the image against the threats `growing(1)`, …, `growing(n)`; else 0.

    All sizes up to n are certified, and n + 1 is not, or there is none: it does not fit the image. That larger threats
    hold smaller ones is not assumed. It is so for squares; for discs it is not, so beyond n + 1 there may be sizes that
    would be certified. `growing` is `squares`, `discs`, `Scaled(mask)` or any function from a size to a threat. The
    paper's margin needs the counts alone and implies the exact certificate, which is therefore tried only on the images
    that it leaves. Raises `InvalidInput`, also where there is no size 1.
    """
    check_method(method)
    check_votes(votes, ablation, image_size)
    prediction = first_argmax(votes.counts)
    ahead = paper_margins(votes, prediction, 0)
    size = torch.zeros_like(prediction)
    for n in range(1, image_size[0] * image_size[1] + 1):
        tried = size == n - 1
        threat = _of_size(growing, n, image_size) if bool(tried.any()) else None
        if threat is None:
            break
        for one in threat.threats:
            touched = _touched(ablation, one, image_size)
            certified = ahead >= 2 * votes.unit * touched.most(one.count)
            if method == "exact" and len(left := (tried & ~certified).nonzero()[:, 0]):
                margins = exact_margins(votes.of(left), prediction[left], touched, one.count)
                certified[left] = margins.amin(dim=1) >= 0
            tried &= certified
        size[tried] = n
    return size


def check_method(method: str) -> None:
    """Refuse anything but "exact" and "margin" with `InvalidInput`."""
    if method not in ("exact", "margin"):
        raise InvalidInput(f'method is {method!r}; use "exact" or "margin"')


def _of_size(growing: Growing, n: int, image_size: tuple[int, int]) -> Threat | None:
    """The threat of that size on such images; None beyond the largest."""
    try:
        return growing(n).on(*image_size)
    except InvalidInput:
        if n == 1:
            raise
        return None


def _touched(ablation: Ablation, threat: Patches, image_size: tuple[int, int]) -> Touched:
    """The sets that a threat touches: read off masks, that can take longer than the certificates of a batch."""
    small = ablation.count(*image_size) * image_size[0] * image_size[1] <= _KEPT
    if small or all(family.rectangle is not None for family in threat.families(*image_size)):
        return _known(ablation, threat, image_size)
    return ablation.touched(threat, *image_size)


@lru_cache(maxsize=64)
def _known(ablation: Ablation, threat: Patches, image_size: tuple[int, int]) -> Touched:
    return ablation.touched(threat, *image_size)
