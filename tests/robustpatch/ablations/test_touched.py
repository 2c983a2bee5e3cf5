"""PITFALLS 1, 2, 3, 6, 7: the ablations a placement touches, every closed form against pixels compared one by one."""

from __future__ import annotations

from math import comb

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.kinds import Blocks, Columns, GridBlocks, GridColumns, Rows
from robustpatch.ablations.parse import parse_ablation
from robustpatch.ablations.touched import Touched
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from tests import oracles
from tests.shapes import Listed

CASES = [
    ("columns:2", (1, 3), (4, 9)),
    ("columns:2", (3, 1), (4, 9)),
    ("columns:3", (2, 6), (8, 24)),
    ("columns:3", (6, 2), (8, 24)),
    ("columns:3", (2, 6), (24, 8)),
    ("columns:3", (6, 2), (24, 8)),
    ("rows:3", (2, 6), (8, 24)),
    ("rows:3", (6, 2), (8, 24)),
    ("rows:3", (2, 6), (24, 8)),
    ("rows:3", (6, 2), (24, 8)),
    ("blocks:2", (2, 6), (6, 10)),
    ("blocks:2", (6, 2), (10, 6)),
    ("blocks:2x4", (2, 3), (6, 9)),
    ("blocks:4x2", (3, 2), (9, 6)),
    ("blocks:4x2", (2, 5), (6, 9)),
    ("columns:3/3", (1, 1), (1, 8)),
    ("rows:3/3", (1, 1), (8, 1)),
    ("columns:3/4", (2, 2), (2, 10)),
    ("columns:2/5", (1, 2), (2, 9)),
    ("blocks:3/3", (1, 1), (8, 8)),
    ("blocks:3x2/2", (2, 3), (7, 5)),
    ("columns:4", (2, 6), (3, 6)),
    ("columns:6", (1, 1), (2, 6)),
    ("blocks:3", (4, 4), (5, 5)),
    ("rows:2/3", (7, 2), (7, 4)),
    ("blocks:3", (2, 2), (3, 7)),
    ("2*grid-columns:1", (2, 3), (4, 6)),
    ("2*grid-columns:3", (3, 2), (5, 8)),
    ("3*grid-columns:2", (6, 4), (6, 9)),
    ("2*grid-blocks:2", (2, 2), (4, 6)),
    ("2*grid-blocks:3", (2, 4), (7, 5)),
    ("3*grid-blocks:2", (1, 3), (5, 4)),
    ("6*grid-blocks:2", (1, 1), (4, 6)),
    ("columns:2+rows:2", (2, 3), (5, 7)),
    ("rows:3/2+columns:2", (3, 1), (7, 5)),
    ("columns:1+rows:1+blocks:2", (2, 2), (4, 5)),
    ("columns:2+2*grid-blocks:3", (1, 2), (5, 7)),
    ("columns:2+columns:2", (1, 1), (1, 6)),
]


def ways(ablation: Ablation, threat: PatchThreat, size: tuple[int, int]) -> list[Touched]:
    """By the closed form; from the masks; and from masks and footprints alone, as a shape without a closed form."""
    places = threat.families(*size)[0]
    listed = Listed(places.anchors, places.footprint(torch.arange(len(places))))
    return [
        ablation.touched(threat, *size),
        Ablation.touched_by(ablation, places),
        ablation.touched_by(listed),
        Ablation.touched_by(ablation, listed),
    ]


def agrees_with_the_oracle(text: str, patch: tuple[int, int], size: tuple[int, int]) -> None:
    ablation, threat = parse_ablation(text), PatchThreat(*patch)
    truth, n = oracles.touched(text, patch, size), ablation.count(*size)
    values = torch.randint(-9, 10, (2, n, 3), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    for touched in ways(ablation, threat, size):
        assert touched.num_ablations == n
        found = [frozenset(touched.indices(int(s)).tolist()) for s in touched.set_of_placement]
        assert found == truth
        assert [int(touched.sizes[s]) for s in touched.set_of_placement] == [len(a) for a in truth]
        assert len(touched.sizes) <= len(truth)
        sets = torch.arange(len(touched.sizes))
        member = touched.member(sets)
        assert [row.nonzero()[:, 0].tolist() for row in member] == [touched.indices(int(s)).tolist() for s in sets]
        sums = touched.sums(values)
        assert sums.dtype == torch.int32
        assert torch.equal(sums, torch.einsum("sn,bnk->bsk", member.long(), values.long()).int())
        assert torch.equal(touched.sums(values > 0), touched.sums((values > 0).int()))
    assert ablation.affected(threat, *size) == max(map(len, truth))


@pytest.mark.parametrize(("text", "patch", "size"), CASES)
def test_closed_form_and_definition_equal_the_oracle(text, patch, size):
    """Sets, sizes, members and sums of every placement; closed form and `Ablation.touched` alike."""
    agrees_with_the_oracle(text, patch, size)


@st.composite
def geometries(draw, kinds=("columns", "rows", "blocks"), longest=10):
    """An ablation, a patch and an image that fit together; strides need not divide anything."""
    height, width = draw(st.integers(1, longest)), draw(st.integers(1, longest))
    kind = draw(st.sampled_from(kinds))
    across = {"columns": width, "rows": height, "blocks": min(height, width)}[kind]
    size, stride = draw(st.integers(1, across)), draw(st.integers(1, across))
    patch = draw(st.integers(1, height)), draw(st.integers(1, width))
    other = f"x{draw(st.integers(1, width))}" if kind == "blocks" else ""
    return f"{kind}:{size}{other}/{stride}", patch, (height, width)


@st.composite
def grids(draw, longest=8):
    """A grid of few enough choices, a patch and an image that fit together."""
    height, width = draw(st.integers(1, longest)), draw(st.integers(1, longest))
    kind = draw(st.sampled_from(("grid-columns", "grid-blocks")))
    size = draw(st.integers(1, width if kind == "grid-columns" else min(height, width)))
    cells = -(-width // size) * (1 if kind == "grid-columns" else -(-height // size))
    keep = draw(st.integers(1, min(cells, 3)).filter(lambda k: comb(cells, k) <= 1000))
    patch = draw(st.integers(1, height)), draw(st.integers(1, width))
    return f"{keep}*{kind}:{size}", patch, (height, width)


@given(geometries(longest=6), st.sampled_from(["columns:1", "rows:1/2", "2*grid-columns:1", "blocks:1"]))
@settings(max_examples=25)
def test_any_union_equals_the_oracle(geometry, other):
    """Whatever its parts are."""
    text, patch, size = geometry
    if (other.startswith("2*") and size[1] < 2) or (other == "rows:1/2" and size[0] < 2):
        other = "columns:1"
    for together in (f"{text}+{other}", f"{other}+{text}"):
        agrees_with_the_oracle(together, patch, size)


@given(grids())
@settings(max_examples=60)
def test_any_grid_equals_the_oracle(geometry):
    agrees_with_the_oracle(*geometry)


@given(geometries())
@settings(max_examples=100)
def test_any_geometry_equals_the_oracle(geometry):
    """Random sizes, strides, patches and images."""
    agrees_with_the_oracle(*geometry)


@pytest.mark.parametrize(
    ("ablation", "patch", "size", "most"),
    [
        (Columns(19, 10), (32, 32), (224, 224), 6),  # five by the published formula ceil((m + s - 1) / stride)
        (Rows(19, 10), (32, 32), (224, 224), 6),
        (Columns(3, 3), (1, 1), (1, 8), 2),  # the wrap brings bands 0 and 2 together
        (Columns(2), (5, 5), (28, 28), 6),
        (Rows(2), (5, 5), (28, 28), 6),
        (Blocks(8), (5, 5), (28, 28), 144),
        (Columns(25), (5, 5), (28, 28), 28),
        (Columns(19), (42, 42), (224, 224), 60),
        (GridColumns(1, 2), (5, 5), (28, 28), 125),  # C(28,2) - C(23,2)
        (GridBlocks(4, 2), (5, 5), (28, 28), 186),  # C(49,2) - C(45,2)
        (GridBlocks(5, 1), (6, 6), (28, 28), 4),
    ],
)
def test_affected_in_known_cases(ablation, patch, size, most):
    """Δ = m + s - 1 at stride 1, and what counting gives where a stride does not divide the size."""
    assert ablation.affected(PatchThreat(*patch), *size) == most


def test_affected_by_several_patches():
    """count · Δ, and never more than N."""
    assert Columns(2).affected(PatchThreat(5, 5, count=2), 28, 28) == 12
    assert Columns(2).affected(PatchThreat(5, 5, count=5), 28, 28) == 28


@given(geometries(("columns", "rows"), longest=9), st.integers(2, 3), st.integers(0, 99))
def test_worst_union_of_bands_is_attained(geometry, count, seed):
    """Columns and rows, all strides: the dynamic programme equals the worst of all unions."""
    text, patch, size = geometry
    touched = parse_ablation(text).touched(PatchThreat(*patch), *size)
    assert touched.exact_unions
    damage = torch.randint(0, 3, (2, touched.num_ablations, 3), generator=torch.Generator().manual_seed(seed))
    found = touched.worst_union(damage.int(), count)
    assert torch.equal(found.long(), worst(oracles.touched(text, patch, size), damage, count))


@given(geometries(longest=5), st.integers(2, 3), st.integers(0, 99))
def test_worst_union_is_never_less_than_the_worst(geometry, count, seed):
    """Any kind, closed form and definition: an upper bound, and exact for one patch."""
    text, patch, size = geometry
    ablation, threat = parse_ablation(text), PatchThreat(*patch)
    truth = oracles.touched(text, patch, size)
    for touched in ways(ablation, threat, size):
        damage = torch.randint(0, 3, (1, touched.num_ablations, 2), generator=torch.Generator().manual_seed(seed)).int()
        if len(set(truth)) <= 12:
            assert (touched.worst_union(damage, count) >= worst(truth, damage, count)).all()
        assert torch.equal(touched.worst_union(damage, 1).long(), worst(truth, damage, 1))


def worst(sets: list[frozenset[int]], damage: torch.Tensor, count: int) -> torch.Tensor:
    totals = [damage[:, sorted(union)].sum(dim=1) for union in oracles.unions(sets, count)]
    return torch.stack(totals).amax(dim=0)


def test_imagenet_blocks_need_no_matrix():
    """224×224 blocks and a 42×42 patch: 33,489 placements of 50,176 ablations; [L,N] would be 1.7 GB of booleans."""
    touched = Blocks(8).touched(PatchThreat(42, 42), 224, 224)
    assert len(touched.set_of_placement) == 183 * 183
    assert int(touched.sizes.max()) == 49 * 49
    votes = torch.zeros(1, 224 * 224, 2, dtype=torch.bool)
    votes[..., 1] = True
    sums = touched.sums(votes)
    assert torch.equal(sums[0, :, 1].long(), touched.sizes)
    assert not sums[0, :, 0].any()
    assert len(touched.indices(0)) == int(touched.sizes[0])


def test_a_patch_larger_than_the_image_is_refused():
    """PITFALLS 9: before anything is computed."""
    for touched in (Columns(2).touched, Columns(2).affected):
        with pytest.raises(InvalidInput, match="larger than the image, 4x8; take at most 4x8"):
            touched(PatchThreat(5, 2), 4, 8)


@pytest.mark.parametrize("text", ["blocks:1", "columns:1", "rows:2/3"])
@pytest.mark.parametrize("count", [9, 2**28, 2**31 + 1])
def test_any_number_of_patches_does_all_damage_and_no_more(text, count):
    """More patches than ablations: no counter overflows into a certificate, and no loop runs over the patches."""
    touched = parse_ablation(text).touched(PatchThreat(2, 2), 6, 6)
    damage = torch.randint(0, 3, (2, touched.num_ablations, 2), generator=torch.Generator().manual_seed(0)).int()
    assert torch.equal(touched.worst_union(damage, 36 * count), damage.sum(dim=1).int())


def test_shorter_runs_do_not_count_twice():
    """W = 3, stride 2, one pixel, four patches: a run inside another adds nothing after it."""
    touched = Columns(1, 2).touched(PatchThreat(1, 1), 1, 3)
    damage = torch.tensor([[[0], [2]]], dtype=torch.int32)
    assert int(touched.worst_union(damage, 4)) == 2
