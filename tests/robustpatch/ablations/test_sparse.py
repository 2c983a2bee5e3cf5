"""Sparse ablation: the chance of being touched against every subset, against exact fractions, and against draws."""

from __future__ import annotations

from fractions import Fraction
from math import comb, exp

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare

from robustpatch.ablations.kinds import Columns
from robustpatch.ablations.parse import parse_source
from robustpatch.ablations.sparse import Draws, SparseAblation
from robustpatch.errors import InvalidInput
from robustpatch.threats.any_of import AnyOf
from robustpatch.threats.rectangle import PatchThreat
from tests import oracles


def draw(n, keep, size, seed=0):
    return SparseAblation(keep).sample(n, *size, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 4), (3, 3), (4, 3)])
@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 1), (2, 2, 1), (2, 1, 2), (1, 1, 3), (3, 3, 1), (2, 2, 2)])
def test_the_chance_of_being_touched_by_every_subset(size, patch):
    """The worst placement over all C(d,k) subsets; several patches that cannot lie apart touch less, never more."""
    height, width, count = patch
    if height > size[0] or width > size[1] or count > size[0] * size[1]:
        return
    for keep in range(1, size[0] * size[1] + 1):
        found = SparseAblation(keep).touched_chance(PatchThreat(*patch), *size)
        exact, apart = oracles.sparse_touched(keep, patch, size)
        assert found == pytest.approx(float(exact), rel=1e-12) if apart else found >= float(exact) - 1e-12
        assert 0 < found <= 1


@pytest.mark.parametrize("side", [28, 224, 299])
@pytest.mark.parametrize("patch", [1, 5, 42, 200])
@pytest.mark.parametrize("keep", [1, 5, 550, 20_000, -5, 0])
def test_no_overflow_at_imagenet_sizes(side, patch, keep):
    """Against quotients of whole numbers of up to 27,000 digits; `keep` ≤ 0 counts from all pixels down."""
    total, covered = side * side, patch * patch
    keep = keep if keep > 0 else total + keep
    if patch > side or keep > total:
        return
    ablation, threat = SparseAblation(keep), PatchThreat(patch, patch)
    none, every = comb(total - covered, keep), comb(total, keep)
    found, untouched = ablation.touched_chance(threat, side, side), exp(ablation.log_untouched(covered, side, side))
    assert found == pytest.approx((every - none) / every, rel=1e-12)
    assert untouched == pytest.approx(none / every, rel=1e-10, abs=1e-300)
    assert (found == 1) >= (keep > total - covered)


@given(st.data())
def test_the_chance_rises(data):
    """With every pixel kept and every pixel covered; and k and ρ may change places."""
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    total = height * width
    keep, covered = data.draw(st.integers(1, total)), data.draw(st.integers(1, total))
    value = SparseAblation(keep).log_untouched(covered, height, width)
    assert value <= 0
    assert value == SparseAblation(covered).log_untouched(keep, height, width)
    if keep < total:
        assert SparseAblation(keep + 1).log_untouched(covered, height, width) <= value
    if covered < total:
        assert SparseAblation(keep).log_untouched(covered + 1, height, width) <= value
    if total <= 200:
        exact = Fraction(comb(total - covered, keep), comb(total, keep))
        assert exp(value) == pytest.approx(float(exact), rel=1e-11)


def test_either_of_several_threats():
    """The worst of them, by area."""
    ablation, threats = SparseAblation(4), [PatchThreat(1, 6), PatchThreat(3, 3), PatchThreat(2, 2, 2)]
    each = [ablation.touched_chance(one, 7, 7) for one in threats]
    assert ablation.touched_chance(AnyOf(threats), 7, 7) == max(each) == each[1]


@pytest.mark.parametrize("keep", [1, 3, 11, 12])
def test_draws_keep_so_many_pixels_each_set_as_likely(keep):
    """12 pixels, 20,000 draws: the number kept, how often each pixel is, and how often a patch is hit."""
    kept = draw(20_000, keep, (3, 4))
    assert (kept.flatten(1).sum(dim=1) == keep).all()
    each = kept.flatten(1).sum(dim=0)
    if keep < 12:  # draws without replacement vary less than chi-square allows for
        assert chisquare(each.tolist()).pvalue > 1e-3
    hits = int(kept[:, :2, :2].flatten(1).any(dim=1).sum())
    chance = SparseAblation(keep).touched_chance(PatchThreat(2, 2), 3, 4)
    assert binomtest(hits, 20_000, min(1.0, chance)).pvalue > 1e-3


def test_every_subset_is_drawn_as_often():
    """C(6,2) = 15 pairs of pixels."""
    kept = draw(15_000, 2, (2, 3)).flatten(1).long()
    code = (kept * 2 ** torch.arange(6)).sum(dim=1)
    counts = torch.bincount(code)
    counts = counts[counts > 0]
    assert len(counts) == 15
    assert chisquare(counts.tolist()).pvalue > 1e-3


def test_draws_are_reproducible_and_any_of_them_by_number():
    """Equal values keep equal pixels; another seed, number or source does not; callers cannot write into them."""
    draws = Draws(SparseAblation(3), 50, 7)
    masks = draws.masks(4, 5)
    assert torch.equal(masks, Draws(SparseAblation(3), 50, 7).masks(4, 5))
    assert torch.equal(draws.masks(4, 5, torch.tensor([[4, 2], [0, 49]])), masks[torch.tensor([[4, 2], [0, 49]])])
    assert not torch.equal(masks, Draws(SparseAblation(3), 50, 8).masks(4, 5))
    assert draws.count(4, 5) == 50
    masks.zero_()
    assert (draws.masks(4, 5).flatten(1).sum(dim=1) == 3).all()
    assert torch.equal(draw(3, 2, (4, 4), 1), draw(3, 2, (4, 4), 1))


@pytest.mark.parametrize("keep", [0, -1, True])
def test_a_number_of_pixels_that_is_none(keep):
    """Whole and at least 1."""
    with pytest.raises(InvalidInput, match=r"sparse keep is .*; it must be a whole number of at least 1"):
        SparseAblation(keep)


def test_more_pixels_than_there_are():
    """For draws, chances and counts alike."""
    calls = (
        lambda a: a.sample(1, 2, 3, torch.Generator()),
        lambda a: a.touched_chance(PatchThreat(1, 1), 2, 3),
        lambda a: a.log_untouched(1, 2, 3),
        lambda a: Draws(a, 2, 0).masks(2, 3),
        lambda a: Draws(a, 2, 0).count(2, 3),
    )
    for call in calls:
        call(SparseAblation(6))
        with pytest.raises(InvalidInput, match="sparse keep is 7, more than the image's 6 pixels; take at most 6"):
            call(SparseAblation(7))
    with pytest.raises(InvalidInput, match="larger than the image"):
        SparseAblation(2).touched_chance(PatchThreat(3, 1), 2, 3)


def test_reading_it():
    """`str` is the inverse; every other ablation is read as before."""
    assert parse_source(" Sparse:5 ") == SparseAblation(5)
    assert str(parse_source("sparse:550")) == "sparse:550"
    assert parse_source("columns:2") == Columns(2)
    for text in ("sparse", "sparse:", "sparse:x", "sparse:5/2", "sparse:-1", "sparse:٥"):
        with pytest.raises(InvalidInput, match=r'ablation is .*; use "sparse:5"'):
            parse_source(text)
    with pytest.raises(InvalidInput, match="sparse keep is 0"):
        parse_source("sparse:0")
    with pytest.raises(InvalidInput, match="ablation is 'stripes:2'"):
        parse_source("stripes:2")
