"""A threat on an image: the pixels that it reaches, one of its placements, and the worst margin of each placement."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from robustpatch.certificates.certificate import NO_PLACE as ABSENT
from robustpatch.certificates.certificate import Certificate
from robustpatch.threats.base import Patches, Threat

SIDE = 128  # pixels above which a picture is made smaller, and cells above which a map is
MAPS = 4  # of an `AnyOf`, those of the worst members
NO_PLACE = np.iinfo(np.int16).max  # in a map: a cell at which the patch has no placement
REACHED, COVERED = 1, 2  # of pixels where a threat is drawn


@dataclass(frozen=True)
class PlacementMap:
    """Worst margins of the placements of one patch, by the top-left corner of the rectangle that holds it; certified
    where ≥ 0. `shape` is the number of such corners down and across, `placements` that of placements, all by default.

    `margins` is int16, `NO_PLACE` where the patch has no placement. Where `step` > 1 a cell is the least of step ×
    step.
    """

    threat: tuple[int, int]
    shape: tuple[int, int]
    step: int
    margins: np.ndarray
    placements: int | None = None


def placement_maps(certificate: Certificate, i: int, threat: Threat, size: tuple[int, int]) -> list[PlacementMap]:
    """The map of each alternative, worst first; none where the certificate has none of this threat's form."""
    margins, threats = certificate.placement_margin, threat.threats
    if margins is None or any(one.count > 1 for one in threats):
        return []
    families = [one.everywhere.family(*size) for one in threats]
    lengths = [len(family) for family in families]
    if margins.shape[1] != sum(lengths):
        return []
    found = []
    for one, family, part in zip(threats, families, margins[i].cpu().split(lengths), strict=True):
        if bool((part == ABSENT).all()):
            continue
        shape = (size[0] - one.height + 1, size[1] - one.width + 1)
        whole = (part.double() / certificate.unit).floor().clamp(torch.iinfo(torch.int16).min, NO_PLACE - 1)
        whole[part == ABSENT] = NO_PLACE
        rows, columns = family.corners(family.anchors).unbind(dim=1)
        grid = torch.full((shape[0] * shape[1],), NO_PLACE, dtype=torch.float64)
        grid.scatter_reduce_(0, rows * shape[1] + columns, whole, "amin")
        step = -(-max(shape) // SIDE)
        cells = grid.view(1, *shape)
        cells = -max_pool2d(-cells, step, ceil_mode=True) if step > 1 else cells
        kept = cells[0].to(torch.int16).numpy()
        found.append(PlacementMap((one.height, one.width), shape, step, kept, int((part != ABSENT).sum())))
    return sorted(found, key=lambda one: int(one.margins.min()))[:MAPS]


@lru_cache(maxsize=16)
def threat_drawn(patches: Patches, height: int, width: int) -> np.ndarray:
    """The pixels that the patches reach, and those that they cover side by side in the middle, or near it."""
    found = torch.zeros(height, width, dtype=torch.uint8)
    families = patches.families(height, width)
    for family in dict.fromkeys(families):
        everywhere = family.rectangle is not None or family.covered(torch.ones(1, len(family), dtype=torch.bool))[0]
        found[everywhere] = REACHED
    for number, family in enumerate(families):
        box = torch.tensor(family.rectangle or family.extent)
        middle = torch.tensor([height / 2, width * (number + 1) / (len(families) + 1)]) - box / 2
        nearest = (family.corners(family.anchors) - middle).square().sum(dim=1).argmin()
        found[family.footprint(nearest[None])[0]] = COVERED
    return reduced(found)


def reduced(codes: Tensor) -> np.ndarray:
    """Codes [H,W] of the picture's pixels: of those that a pixel stands for, the greatest."""
    factor = -(-max(codes.shape) // SIDE)
    if factor > 1:
        codes = max_pool2d(codes[None].float(), factor, ceil_mode=True)[0]
    return codes.to(torch.uint8).numpy()
