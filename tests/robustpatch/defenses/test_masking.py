"""Mask sets: every placement of the patch lies inside some mask, counted pixel by pixel."""

from __future__ import annotations

from itertools import combinations, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustpatch.defenses.masking import Boxes, MaskSet
from robustpatch.errors import InvalidInput
from robustpatch.threats.any_of import AnyOf
from robustpatch.threats.parse import parse_threat
from robustpatch.threats.rectangle import PatchThreat

SIDES = st.tuples(st.integers(1, 13), st.integers(1, 13))
PER_AXIS = st.tuples(st.integers(1, 7), st.integers(1, 7))


def fitting(size: tuple[int, int], share: tuple[int, int]) -> PatchThreat:
    """A patch that fits an image of that size, for any two numbers."""
    return PatchThreat(1 + share[0] % size[0], 1 + share[1] % size[1])


def is_hidden(masks: MaskSet, threat: PatchThreat) -> bool:
    """Whether each placement lies inside some mask: the definition, from pixels."""
    hidden = masks.hidden()
    footprints = threat.footprint(threat.placements(*masks.image_size)[:, None], *masks.image_size)
    return all(bool((~footprint | hidden).flatten(1).all(dim=1).any()) for footprint in footprints)


@given(SIDES, SIDES, SIDES, PER_AXIS)
def test_every_placement_lies_inside_some_mask(size, share, other, per_axis):
    patch = fitting(size, share)
    masks = Boxes.for_patch(patch, per_axis, size)
    assert is_hidden(masks, patch)
    assert masks.covers(patch)
    assert masks.covers(fitting(size, other)) == is_hidden(masks, fitting(size, other))


@given(SIDES, SIDES, PER_AXIS)
def test_masks_are_inside_the_image_distinct_and_of_one_size(size, share, per_axis):
    masks = Boxes.for_patch(fitting(size, share), per_axis, size)
    hidden = masks.hidden()
    assert hidden.shape == (len(masks), *size)
    assert len(masks.rows) <= per_axis[0]
    assert len(masks.columns) <= per_axis[1]
    assert {int(mask.sum()) for mask in hidden} == {masks.height * masks.width}
    assert len({tuple(mask.flatten().tolist()) for mask in hidden}) == len(masks)


@pytest.mark.parametrize(
    ("size", "patch", "masks", "rows", "side"),
    [
        ((28, 28), "5x5", (6, 6), (0, 4, 8, 12, 16, 20), 8),
        ((224, 224), "32x32", (6, 6), (0, 33, 66, 99, 132, 160), 64),
        ((224, 32), "32x32", (3, 1), (0, 65, 128), 96),
        ((5, 5), "5x5", (6, 6), (0,), 5),
    ],
)
def test_masks_of_the_paper(size, patch, masks, rows, side):
    """Section 3.1: stride ceil((n - m + 1) / k), side m + stride - 1."""
    found = Boxes.for_patch(parse_threat(patch, size), masks, size)
    assert (found.rows, found.height) == (rows, side)


def test_unions_are_single_masks_and_pairs():
    masks = Boxes.for_patch(PatchThreat(5, 5), (6, 6), (28, 28))
    assert (len(masks.views), len(masks.unions)) == (36, 666)
    hidden = masks.hidden()
    for s, t in product((0, 7, 35), (0, 1, 35)):
        assert torch.equal(hidden[masks.unions[masks.pair[s, t]]].any(dim=0), hidden[s] | hidden[t])


@pytest.mark.parametrize(("masks", "unions"), [((1, 1), 1), ((1, 2), 1), ((1, 3), 4), ((2, 2), 11), ((3, 3), 246)])
def test_two_patches_are_hidden_by_views_of_two_masks(masks, unions):
    found = Boxes.for_patch(PatchThreat(2, 2, 2), masks, (6, 7))
    assert len(found.unions) == unions
    hidden = found.hidden()
    views = hidden[found.views].any(dim=1)
    patch = PatchThreat(2, 2)
    footprints = patch.footprint(patch.placements(6, 7)[:, None], 6, 7)
    for one, other in combinations(footprints, 2):
        assert bool((~(one | other) | views).flatten(1).all(dim=1).any())
    for s, t in product(range(len(views)), repeat=2):
        assert torch.equal(hidden[found.unions[found.pair[s, t]]].any(dim=0), views[s] | views[t])


@given(SIDES, SIDES, SIDES, PER_AXIS)
def test_views_that_hide_each_placement(size, share, other, per_axis):
    """Against pixels, for the patch that the masks are made for and any other."""
    masks = Boxes.for_patch(fitting(size, share), per_axis, size)
    for patch in (fitting(size, share), fitting(size, other)):
        footprints = patch.footprint(patch.placements(*size)[:, None], *size)
        expected = (~footprints[:, None] | masks.hidden()).flatten(2).all(dim=2)
        assert torch.equal(masks.hiding_at(patch), expected)
        assert {tuple(some) for some in masks.hiding(patch).tolist()} == {tuple(some) for some in expected.tolist()}


@pytest.mark.parametrize("patch", [PatchThreat(2, 2, 2), PatchThreat(1, 2, 2), PatchThreat(2, 1)])
def test_views_that_hide_all_patches_at_once(patch):
    """Two of them, or fewer than the masks are made for: every choice of placements, from pixels."""
    masks = Boxes.for_patch(PatchThreat(2, 2, 2), (2, 2), (5, 6))
    views = masks.hidden()[masks.views].any(dim=1)
    footprints = patch.footprint(patch.placements(5, 6)[:, None], 5, 6)
    expected = set()
    for one, other in product(footprints, repeat=2):
        both = one | other if patch.count == 2 else one
        expected.add(tuple((~both | views).flatten(1).all(dim=1).tolist()))
    assert {tuple(some) for some in masks.hiding(patch).tolist()} == expected
    either = AnyOf([patch, PatchThreat(1, 1)])
    both = {tuple(some) for one in either.threats for some in masks.hiding(one).tolist()}
    assert {tuple(some) for some in masks.hiding(either).tolist()} == both


def test_threats_that_are_covered_and_not():
    masks = Boxes.for_patch(PatchThreat(4, 2), (3, 3), (10, 9))
    assert masks.covers(AnyOf([PatchThreat(4, 1), PatchThreat(1, 2)]))
    assert not masks.covers(AnyOf([PatchThreat(4, 1), PatchThreat(2, 4)]))
    assert not masks.covers(PatchThreat(1, 1, 2))
    assert Boxes.for_patch(PatchThreat(4, 2, 2), (3, 3), (10, 9)).covers(PatchThreat(4, 2))


def test_wrong_numbers_are_refused():
    with pytest.raises(InvalidInput, match="masks is 0x3"):
        Boxes.for_patch(PatchThreat(2, 2), (0, 3), (6, 6))
    with pytest.raises(InvalidInput, match="larger than the image"):
        Boxes.for_patch(PatchThreat(7, 2), (2, 3), (6, 6))
