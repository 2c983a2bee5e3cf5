"""Which pixels each ablation keeps: every kind against pixels drawn one by one."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustpatch.ablations.kinds import Blocks, Columns, GridBlocks, GridColumns, Rows
from robustpatch.ablations.parse import parse_ablation
from robustpatch.errors import InvalidInput
from tests import oracles

CASES = [
    ("columns:1", 4, 6),
    ("columns:3", 8, 24),
    ("columns:3", 24, 8),
    ("columns:6", 2, 6),
    ("columns:3/3", 2, 8),
    ("columns:2/5", 3, 9),
    ("columns:4/2", 3, 7),
    ("rows:1", 6, 4),
    ("rows:5", 8, 24),
    ("rows:5", 24, 8),
    ("rows:3/3", 8, 2),
    ("rows:2/4", 7, 3),
    ("blocks:2", 5, 5),
    ("blocks:2x4", 5, 7),
    ("blocks:4x2", 7, 5),
    ("blocks:3", 4, 12),
    ("blocks:3", 12, 4),
    ("blocks:3/2", 5, 7),
    ("blocks:2x3/4", 6, 9),
    ("1*grid-columns:2", 3, 6),
    ("2*grid-columns:1", 3, 6),
    ("3*grid-columns:2", 3, 7),
    ("2*grid-columns:3", 8, 4),
    ("2*grid-blocks:2", 4, 6),
    ("2*grid-blocks:2", 5, 3),
    ("3*grid-blocks:3", 7, 4),
    ("4*grid-blocks:2", 4, 4),
]


def pixels(masks: torch.Tensor) -> list[set[tuple[int, int]]]:
    return [{(int(r), int(c)) for r, c in mask.nonzero()} for mask in masks]


@pytest.mark.parametrize(("text", "height", "width"), CASES)
def test_masks_are_the_pixels_drawn_one_by_one(text, height, width):
    """`masks` and `count` equal the oracle, in its order; `masks(index)` are rows of all, for any shape of index."""
    ablation, truth = parse_ablation(text), oracles.kept(text, height, width)
    every = ablation.masks(height, width)
    assert ablation.count(height, width) == len(truth)
    assert pixels(every) == truth
    index = torch.arange(len(every)).flip(0)
    for some in (index, torch.stack([index, index.flip(0)])):
        assert torch.equal(ablation.masks(height, width, some), every[some])
    assert ablation.masks(height, width, index[:0]).shape == (0, height, width)


@given(st.data())
def test_masks_are_distinct_and_equally_large_at_stride_1(data):
    """PITFALLS 8: no ablation is listed twice, none is wider than the others."""
    height, width = data.draw(st.integers(2, 9)), data.draw(st.integers(2, 9))
    a, b = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    cases = ((Columns(b), b < width), (Rows(a), a < height), (Blocks(a, b), a < height and b < width))
    for ablation, distinct in cases:
        masks = ablation.masks(height, width).flatten(1)
        assert len(masks.sum(dim=1).unique()) == 1
        if distinct:  # a band as wide as the image is the whole image, wherever it starts
            assert len(masks.unique(dim=0)) == len(masks)


@pytest.mark.parametrize(
    "text", ["columns:2", "rows:3", "blocks:8", "blocks:4x6", "columns:19/10", "blocks:4x6/3", "2*grid-columns:1"]
)
def test_parse_is_the_inverse_of_str(text):
    """A checkpoint or a proof that stores the text reads back an equal, equally hashed ablation."""
    ablation = parse_ablation(text)
    assert str(ablation) == text
    assert parse_ablation(str(ablation)) == ablation
    assert hash(parse_ablation(str(ablation))) == hash(ablation)


def test_parse_understands_the_parts():
    """height × width, then the stride."""
    assert parse_ablation(" Columns:19/10 ") == Columns(19, 10)
    assert parse_ablation("blocks:4x6/2") == Blocks(4, 6, 2)
    assert parse_ablation("blocks:4") == Blocks(4, 4, 1)
    assert Columns(2) != Rows(2)
    assert parse_ablation("2 * grid-blocks:4") == GridBlocks(4, 2) == parse_ablation(str(GridBlocks(4, 2)))
    assert parse_ablation("grid-columns:3") == GridColumns(3)
    assert GridColumns(3) != GridBlocks(3)


NO_ABLATION = """columns columns: columns:2x3 rows:1x1 stripes:2 columns:-2 columns:0 blocks:0 blocks:4x0 columns:2/0
columns:2.5 blocks:4x6x8 0*grid-blocks:4 2*grid-blocks:0 2*grid-blocks:4x4 2*grid-columns:2/2 2*columns:2 grid-rows:2"""


@pytest.mark.parametrize("text", ["", *NO_ABLATION.split()])
def test_parse_refuses(text):
    """Every text that names no ablation, with the text in the message."""
    with pytest.raises(InvalidInput):
        parse_ablation(text)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Columns(0),
        lambda: Columns(-1),
        lambda: Rows(2, 0),
        lambda: Blocks(0, 3),
        lambda: Blocks(3, -1),
        lambda: Blocks(2, 2, 0),
        lambda: Columns(True),
        lambda: GridColumns(0),
        lambda: GridColumns(2, 0),
        lambda: GridBlocks(2, True),
    ],
)
def test_sizes_and_strides_are_whole_numbers_above_zero(build):
    """PITFALLS 9: the message names the parameter and what it must be."""
    with pytest.raises(InvalidInput, match=r"(size|height|width|stride|keep) is .*; it must be a whole number"):
        build()


@pytest.mark.parametrize(
    ("ablation", "size"),
    [
        (Columns(7), (9, 6)),
        (Rows(7), (6, 9)),
        (Blocks(3, 7), (9, 6)),
        (Blocks(7, 3), (6, 9)),
        (Columns(2, 7), (9, 6)),
        (Rows(2, 7), (6, 9)),
        (Blocks(2, 2, 7), (9, 6)),
        (GridColumns(7), (9, 6)),
        (GridBlocks(7), (9, 6)),
    ],
)
def test_a_band_or_stride_beyond_the_image_is_refused(ablation, size):
    """PITFALLS 9: in `count` and in `masks`; the same ablation is fine on the transposed image where it fits."""
    for call in (ablation.count, ablation.masks):
        with pytest.raises(InvalidInput, match="more than the image's 6 pixels; take at most 6"):
            call(*size)
    if not isinstance(ablation, Blocks | GridBlocks):
        assert ablation.count(*reversed(size)) > 0


def test_a_grid_keeps_no_more_cells_than_there_are_and_lists_no_millions():
    """All cells is one ablation; one more is refused, and so is a number of choices that nobody could score."""
    assert GridColumns(3, 3).count(4, 8) == 1
    with pytest.raises(InvalidInput, match=r"keep is 4, more than the 3 cells of size 3 in 4x8 pixels; keep fewer"):
        GridColumns(3, 4).masks(4, 8)
    with pytest.raises(InvalidInput, match=r"keep is 4, which makes 59626385 ablations"):
        GridBlocks(16, 4).count(224, 224)


def test_many_cells_of_a_grid_are_listed_without_every_tuple_of_them():
    """Eight of 16 cells are 12,870 choices of 4 billion tuples; all but one of 28 columns, 28 of 28^27."""
    masks = GridBlocks(7, 8).masks(28, 28)
    assert masks.shape == (12_870, 28, 28)
    assert (masks.flatten(1).sum(dim=1) == 8 * 49).all()
    assert len(masks[:, ::7, ::7].flatten(1).unique(dim=0)) == 12_870
    left_out = (~GridColumns(1, 27).masks(2, 28)).any(dim=1).nonzero()
    assert left_out.tolist() == [[n, 27 - n] for n in range(28)]
    choices = GridColumns(1, 27).choices(2, 28)
    choices.zero_()  # the caller's own
    assert GridColumns(1, 27).choices(2, 28)[0].tolist() == list(range(27))


@pytest.mark.parametrize("text", ["columns:3/2", "rows:2", "blocks:2x3", "2*grid-columns:1", "grid-blocks:2"])
def test_pickles_name_this_module(text):
    """Whatever file the geometry is in: a worker of another version finds the ablation where it always was."""
    ablation = parse_ablation(text)
    content = pickle.dumps(ablation)
    assert b"robustpatch.ablations.kinds" in content
    assert b"geometry" not in content
    assert pickle.loads(content) == ablation
