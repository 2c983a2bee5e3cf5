"""Regions of neighbouring placements: together they are all choices, none missed."""

from __future__ import annotations

from itertools import combinations_with_replacement, product

import pytest
import torch

from robustpatch import PatchThreat
from robustpatch.defenses.regions import Regions


@pytest.mark.parametrize("size", [(5, 8), (7, 5)])
@pytest.mark.parametrize(
    ("threat", "side"), [(PatchThreat(2, 3), 3), (PatchThreat(1, 1), 4), (PatchThreat(4, 4, 2), 2)]
)
def test_regions_are_all_choices_of_placements(size, threat, side):
    """Halved until each is single: every choice of placements is there, for every image, and its footprint is right."""
    regions, found = Regions.of(threat, size, 2, "cpu", side), set()
    while len(regions):
        regions, some = regions.split(7)
        smaller = some.keep(~some.single).halves()
        for whole, part in ((some, smaller),):
            if len(part):
                covered = [part.footprint()[part.image == i].any(dim=0) for i in range(2)]
                before = [whole.footprint()[~whole.single & (whole.image == i)].any(dim=0) for i in range(2)]
                assert all(map(torch.equal, covered, before))
        regions = regions.join(smaller)
        single = some.keep(some.single)
        mine = single.corners[..., ::2]
        assert torch.equal(single.footprint(), threat.footprint(mine, *size))
        found |= {(int(i), tuple(sorted(map(tuple, own.tolist())))) for i, own in zip(single.image, mine, strict=True)}
    corners = list(product(range(size[0] - threat.height + 1), range(size[1] - threat.width + 1)))
    choices = combinations_with_replacement(corners, threat.count)
    assert found == set(product(range(2), (tuple(sorted(choice)) for choice in choices)))
