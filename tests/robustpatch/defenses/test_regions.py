"""Regions of neighbouring placements: together they are all choices, none missed."""

from __future__ import annotations

from itertools import combinations_with_replacement, product

import pytest
import torch

from robustpatch import PatchThreat
from robustpatch.defenses.regions import Regions
from robustpatch.threats import Disc, Footprints, Mask, Within


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


@pytest.mark.parametrize(
    "threat",
    [
        Disc(3),
        Mask.of(torch.tensor([[True, False, True], [True, False, False]]), 2),
        Within.of(Disc(3), torch.arange(40).view(5, 8) % 7 > 0),
        Footprints.of(torch.rand(9, 5, 8, generator=torch.Generator().manual_seed(0)) < 0.3, 2),
    ],
    ids=lambda threat: threat.shape,
)
def test_regions_of_any_shape(threat):
    """Halved until single: every choice of places is there, and covers the union of its footprints."""
    size, found = (5, 8), set()
    places = threat.family(*size)
    anchors = {tuple(anchor): number for number, anchor in enumerate(places.anchors.tolist())}
    regions = Regions.of(threat, size, 1, "cpu", 3)
    while len(regions):
        regions, some = regions.split(7)
        regions = regions.join(some.keep(~some.single).halves())
        single = some.keep(some.single)
        for own, covered in zip(single.corners[..., ::2].tolist(), single.footprint(), strict=True):
            numbers = [anchors[tuple(at)] for at in own if tuple(at) in anchors]
            expected = places.footprint(torch.tensor(numbers, dtype=torch.long)).any(dim=0)
            assert torch.equal(covered, expected)
            if len(numbers) == threat.count:
                found.add(tuple(sorted(numbers)))
    assert found == set(combinations_with_replacement(range(len(places)), threat.count))
