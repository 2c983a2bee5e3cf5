"""What the attacker may change: sizes read from text, placements, footprints, alternatives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustpatch.errors import InvalidInput
from robustpatch.threats.any_of import AnyOf
from robustpatch.threats.parse import parse_threat
from robustpatch.threats.rectangle import PatchThreat
from tests import oracles

ON_224 = {  # text: height, width, count
    **{"5x5": (5, 5, 1), "5": (5, 5, 1), "2x10": (2, 10, 1), " 2 X 10 ": (2, 10, 1), "224x1": (224, 1, 1)},
    **{"2*5x5": (5, 5, 2), "3 * 4": (4, 4, 3), "2*2%": (32, 32, 2), "100%": (224, 224, 1)},
    **{"0.5%": (16, 16, 1), "1%": (23, 23, 1), "2%": (32, 32, 1), "3%": (39, 39, 1)},
}


@pytest.mark.parametrize("text", ON_224)
def test_parse(text):
    """Every form, height before width, on 224×224."""
    assert parse_threat(text, (224, 224)) == PatchThreat(*ON_224[text])


@given(st.integers(0, 10_000), st.integers(1, 300), st.integers(1, 300))
def test_percent_is_the_smallest_square_of_at_least_that_area(hundredths, height, width):
    """side² ≥ p·H·W/100 > (side - 1)², in whole numbers; refused where it is empty or does not fit."""
    wanted = hundredths * height * width  # area · 10,000
    side = next(side for side in range(301) if side * side * 10_000 >= wanted)
    text = f"{hundredths // 100}.{hundredths % 100:02d}%"
    if 0 < side <= min(height, width):
        assert parse_threat(text, (height, width)) == PatchThreat(side, side)
    else:
        with pytest.raises(InvalidInput):
            parse_threat(text, (height, width))


NO_PATCH = ["", "5 5", *"x 5x x5 5x5x5 -3 2.5 2**5 % -1% 1e1% 5x5% 2* 0 0x4 4x0 0*5x5 0% five".split(" ")]  # noqa: SIM905


@pytest.mark.parametrize("text", NO_PATCH)
def test_parse_refuses_what_is_no_patch(text):
    """Nothing is guessed: the text or the wrong number is in the message."""
    with pytest.raises(InvalidInput, match="patch"):
        parse_threat(text, (28, 28))


def test_parse_refuses_a_patch_that_does_not_fit():
    """PITFALLS 7: 2×6 fits an image of 2×6, 6×2 does not; the message says what fits."""
    assert parse_threat("2x6", (2, 6)) == PatchThreat(2, 6)
    with pytest.raises(InvalidInput, match=r"patch 6x2 .* larger than the image, 2x6; take at most 2x6"):
        parse_threat("6x2", (2, 6))


@pytest.mark.parametrize("values", [(0, 3), (3, 0), (-1, 3), (3, 3, 0), (True, 3)])
def test_sizes_are_whole_numbers_above_zero(values):
    """PITFALLS 9: the message names the parameter and the value."""
    with pytest.raises(InvalidInput, match=r"patch (height|width|count) is .*; it must be a whole number"):
        PatchThreat(*values)


def test_placements_are_all_corners_in_row_major_order():
    """(row, column), rows first; L = (H-h+1)·(W-w+1)."""
    expected = [[r, c] for r in range(3) for c in range(5)]
    assert PatchThreat(2, 4).placements(4, 8).tolist() == expected
    assert PatchThreat(4, 8).placements(4, 8).tolist() == [[0, 0]]
    with pytest.raises(InvalidInput):
        PatchThreat(5, 1).placements(4, 8)


@given(st.data())
def test_footprint_is_the_union_of_the_rectangles(data):
    """Pixel by pixel, for one to three patches with height and width apart."""
    height, width = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7))
    h, w, count = data.draw(st.integers(1, height)), data.draw(st.integers(1, width)), data.draw(st.integers(1, 3))
    corners = data.draw(
        st.lists(
            st.lists(st.tuples(st.integers(0, height - h), st.integers(0, width - w)), min_size=count, max_size=count),
            min_size=1,
            max_size=3,
        )
    )
    masks = PatchThreat(h, w, count).footprint(torch.tensor(corners), height, width)
    for mask, some in zip(masks, corners, strict=True):
        truth = set().union(*(oracles.rectangle(*corner, h, w) for corner in some))
        assert {(int(r), int(c)) for r, c in mask.nonzero()} == truth


def test_any_of_flattens_and_drops_repetitions():
    """Nested alternatives are one list; the order is kept; equal alternatives are equal and hash alike."""
    a, b, c = PatchThreat(2, 10), PatchThreat(10, 2), PatchThreat(3, 3, 2)
    nested = AnyOf([a, AnyOf([b, a]), c, b])
    assert nested.threats == (a, b, c)
    assert nested == AnyOf([a, b, c])
    assert hash(nested) == hash(AnyOf([a, b, c]))
    assert str(nested) == "2x10,10x2,2*3x3"
    assert parse_threat(str(nested), (28, 28)) == nested
    assert parse_threat("2x10", (28, 28)) == a
    with pytest.raises(InvalidInput, match="threats is empty"):
        AnyOf([])
    with pytest.raises(InvalidInput, match="larger than the image"):
        nested.check_fits(28, 9)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 9))
def test_rectangles_are_the_maximal_ones_of_an_area(area, height, width):
    """Every fitting rectangle of at most that area lies in one of them, all fit, and none lies in another."""
    found = {(t.height, t.width) for t in AnyOf.rectangles(area, (height, width)).threats}
    fitting = {(h, w) for h in range(1, height + 1) for w in range(1, width + 1) if h * w <= area}
    assert found == {(h, w) for h, w in fitting if (h + 1, w) not in fitting and (h, w + 1) not in fitting}


def test_more_patches_than_pixels_are_refused():
    """Nine fit on 3×3; a tenth, or a million, is refused before anything is allocated for them."""
    PatchThreat(1, 1, 9).check_fits(3, 3)
    for count in (10, 10**6):
        with pytest.raises(InvalidInput, match=f"patch count is {count}, more than the 9 pixels"):
            PatchThreat(1, 1, count).check_fits(3, 3)
