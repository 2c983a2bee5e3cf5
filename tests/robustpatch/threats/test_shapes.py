"""A threat of any shape: what follows from footprints alone, one text form, one dict form."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attacks.base import Proposal, judge
from robustpatch.ablations.parse import parse_ablation
from robustpatch.ablations.sparse import SparseAblation
from robustpatch.certificates.exact import certify_votes
from robustpatch.certificates.top_k import certify_top_k
from robustpatch.defenses.masking import Boxes
from robustpatch.errors import InvalidInput
from robustpatch.threats import AnyOf, AreaShare, PatchThreat, Rectangles, parse, parse_threat, threat_from_dict
from robustpatch.voting.votes import Votes
from tests import oracles, toys
from tests.shapes import Corner, Listed


def nested(depth: int) -> object:
    """Alternatives of alternatives, as nobody writes them."""
    value: object = [5, 5, 1]
    for _ in range(depth):
        value = {"any_of": [value]}
    return value


@given(st.data())
def test_closed_forms_of_rectangles_are_what_the_footprints_say(data):
    """Every method that `Rectangles` overrides, against the definition that any shape has."""
    height, width = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    places = Rectangles(h, w, (height, width))
    every = torch.arange(len(places))
    listed = Listed(places.anchors, places.footprint(every))
    assert [set(map(tuple, mask.nonzero().tolist())) for mask in listed.footprint(every)] == [
        oracles.rectangle(row, column, h, w) for row, column in places.anchors.tolist()
    ]
    assert (len(places), places.pixels, places.extent) == (len(listed), listed.pixels, listed.extent)
    assert (places.rectangle, listed.rectangle) == ((h, w), None)
    masks = torch.rand(5, height, width, generator=torch.Generator().manual_seed(0)) < 0.4
    assert torch.equal(places.hits(masks), listed.hits(masks))
    assert torch.equal(places.inside(~masks), listed.inside(~masks))
    torch.testing.assert_close(places.means(masks.float()), listed.means(masks.float()))
    asked = torch.cartesian_prod(torch.arange(-1, height + 1), torch.arange(-1, width + 1))
    assert torch.equal(places.find(asked), listed.find(asked))
    assert torch.equal(places.find(places.anchors), every)


@pytest.mark.parametrize("text", ["columns:2", "rows:2/3", "blocks:2", "2*grid-blocks:2", "columns:1+rows:2"])
@pytest.mark.parametrize("count", [1, 2])
def test_certificates_of_a_shape_without_closed_forms(text, count):
    """Of three pixels around a corner: exact, by every placement and rival; of two patches, never above the truth."""
    size, threat, ablation = (4, 5), Corner(count), parse_ablation(text)
    kept = [set(map(tuple, mask.nonzero().tolist())) for mask in ablation.masks(*size)]
    corners = [{(r, c), (r + 1, c), (r + 1, c + 1)} for r in range(3) for c in range(4)]
    single = [frozenset(n for n, some in enumerate(kept) if some & corner) for corner in corners]
    cast = torch.nn.functional.one_hot(
        torch.randint(3, (12, len(kept)), generator=torch.Generator().manual_seed(1)) // 2, 3
    ).bool()
    found = certify_votes(Votes(cast, torch.zeros_like(cast)), ablation, threat, size)
    for i, rows in enumerate(cast.int().tolist()):
        leads = [oracles.worst_lead(rows, touched) for touched in oracles.unions(single, count)]
        assert int(found.margin[i]) == min(leads) if count == 1 else int(found.margin[i]) <= min(leads)
        if count == 1:
            assert found.placement_margin[i].tolist() == [oracles.worst_lead(rows, touched) for touched in single]
    top = certify_top_k(Votes(cast, torch.zeros_like(cast)), found.prediction, 1, ablation, threat, size, capacity=1)
    assert torch.equal(top.margin, found.margin)


def test_containment_by_footprint():
    """A pixel of the bounding square that the shape does not cover may not change; nor may an anchor lie outside."""
    x = toys.images(4)
    x_adv, corners = x.clone(), torch.tensor([[[1, 2]], [[1, 2]], [[5, 2]], [[-1, 0]]])
    x_adv[0, :, 2, 3] = 0  # below and to the right: covered
    x_adv[1, :, 1, 3] = 0  # the pixel that the corner leaves free
    changed = (x_adv != x).any(dim=1)
    assert Corner().contains(changed, corners).tolist() == [True, False, False, False]
    assert Corner(2).contains(changed[:1], torch.tensor([[[1, 2], [0, 0]]])).tolist() == [True]
    assert Corner(2).contains(changed[:1], torch.tensor([[[1, 2], [9, 0]]])).tolist() == [False]


def test_masks_and_chances_by_footprint():
    """Masks that hide the corner everywhere; the pixels that count for the chance are the three covered."""
    masks = Boxes.for_patch(Corner(), (2, 2), (5, 6))
    assert masks.covers(Corner())
    assert torch.equal(masks.hiding_at(Corner()), Corner().families(5, 6)[0].inside(masks.hidden()))
    assert not Boxes((0, 3), (0, 3), 2, 3, (5, 6)).covers(Corner())
    sparse = SparseAblation(2)
    assert sparse.touched_chance(Corner(), 4, 4) == sparse.touched_chance(PatchThreat(1, 3), 4, 4)
    assert sparse.touched_chance(Corner(2), 4, 4) == sparse.touched_chance(PatchThreat(2, 3), 4, 4)


@pytest.mark.parametrize(
    ("text", "threat"),
    [
        ("5", PatchThreat(5, 5)),
        ("2x10", PatchThreat(2, 10)),
        ("2*3x4", PatchThreat(3, 4, 2)),
        ("2%", AreaShare("2")),
        ("2*0.5%", AreaShare("0.5", 2)),
        ("2x10, 10x2", AnyOf([PatchThreat(2, 10), PatchThreat(10, 2)])),
        ("2%,1x8", AnyOf([AreaShare("2"), PatchThreat(1, 8)])),
        ("3x3,3", PatchThreat(3, 3)),
    ],
)
def test_one_text_and_one_dict_form(text, threat):
    """No image size is needed to make, read, print, compare or store a threat."""
    assert parse_threat(text) == threat
    assert parse_threat(str(threat)) == threat
    assert threat_from_dict(json.loads(json.dumps(threat.to_dict()))) == threat
    assert hash(threat_from_dict(threat.to_dict())) == hash(threat)


def test_a_share_of_the_area_becomes_pixels_on_an_image():
    """2% of 224×224 is 32×32; members of a choice likewise; a share acts like the square it is."""
    assert parse_threat("2%").on(224, 224) == PatchThreat(32, 32)
    assert parse_threat("2%,1x8").on(28, 28) == AnyOf([PatchThreat(4, 4), PatchThreat(1, 8)])
    assert parse_threat("2%", (28, 28)) == PatchThreat(4, 4)
    assert AreaShare("2").placements(28, 28).tolist() == PatchThreat(4, 4).placements(28, 28).tolist()
    for percent in ("0", "x", "-1"):
        with pytest.raises(InvalidInput, match="patch"):
            AreaShare(percent)
    with pytest.raises(InvalidInput, match="larger than the image, 2x90"):
        parse_threat("50%").on(2, 90)


def test_files_of_before_still_read():
    """[height, width, count], as findings and counterexamples had it."""
    assert threat_from_dict([5, 5, 1]) == PatchThreat(5, 5)
    assert threat_from_dict([2, 10, 3]) == PatchThreat(2, 10, 3)


@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        "5x5",
        [],
        [5, 5],
        [5, 5, 0],
        [5, True, 1],
        ["5", 5, 1],
        {},
        {"shape": "os.system"},
        {"shape": ["rectangle"]},
        {"shape": "rectangle", "height": 5},
        {"shape": "rectangle", "height": 5, "width": 5, "count": 1, "more": 1},
        {"shape": "rectangle", "height": 5.0, "width": 5, "count": 1},
        {"shape": "share", "percent": 2, "count": 1},
        {"any_of": []},
        {"any_of": [[5, 5, 1]], "shape": "rectangle"},
        {"any_of": [{"any_of": {}}]},
        {"any_of": [{"any_of": [[5, 5, 1]]}]},
        nested(400),
    ],
)
def test_what_is_no_threat_is_refused(value):
    """A file can hold anything: one line that says threat or patch, and no other error."""
    with pytest.raises(InvalidInput, match=r"threat|patch"):
        threat_from_dict(value)


def test_a_shape_is_one_class_and_its_parse_rule(monkeypatch):
    """Text, dict and alternatives know a new shape once it is listed."""
    with pytest.raises(InvalidInput, match='use "5x5"'):
        parse_threat("2*corner")
    monkeypatch.setattr(parse, "SHAPES", (*parse.SHAPES, Corner))
    assert parse_threat("2 * Corner,3x3") == AnyOf([Corner(2), PatchThreat(3, 3)])
    assert threat_from_dict(Corner(2).to_dict()) == Corner(2)


def test_the_judge_asks_the_footprint():
    """A toy that answers by one pixel: changed under the shape it falls, changed beside it nothing counts."""

    class Pixel(torch.nn.Module):
        def predict(self, x):
            return (x[:, 0, 1, 3] > 0.5).long()

    x = torch.zeros(2, 1, 4, 5)
    x_adv, corners = x.clone(), torch.tensor([[[0, 2]], [[1, 2]]])
    x_adv[:, 0, 1, 3] = 1
    proposal = Proposal(x_adv, corners, torch.ones(2, dtype=torch.long), torch.ones(2))
    outcome = judge(Pixel().eval(), x, torch.zeros(2, dtype=torch.long), Corner(), proposal)
    assert outcome.broken.tolist() == [True, False]
    assert outcome.contained.tolist() == [True, False]


@pytest.mark.parametrize(
    "value",
    [
        {"shape": "mask", "pixels": "1x1/gA", "count": 1, "name": "32x32"},
        {"shape": "mask", "pixels": "1x1/gA", "count": 1, "name": "mask:a.png,32x32"},
        {"shape": "mask", "pixels": "1x1/gA", "count": 1, "name": "mask:a.png & 9x9"},
        {"shape": "mask", "pixels": "1x1/gA", "count": 1, "name": "3x8@45"},
        {"shape": "footprints", "masks": "1x1x1/gA", "count": 1, "name": "32x32"},
        {"shape": "within", "patch": {"shape": "disc", "diameter": 1, "count": 1}, "region": "1x1/gA", "name": "a,9x9"},
        {"shape": "polygon", "corners": "0/0;4096/0;0/4096", "count": 1},
        {"any_of": [[1, 1, 1]] * 2000},
    ],
)
def test_a_file_cannot_call_a_shape_by_the_text_of_another(value):
    """A page would show the larger patch, and a text would name several; nor can it ask for hours of work."""
    with pytest.raises(InvalidInput):
        threat_from_dict(value)


@pytest.mark.parametrize("degrees", ["30.0005", "359.9999", "0.0001", "405.5", "26.5651"])
def test_turned_shapes_have_the_text_that_makes_them(degrees):
    """To four decimals, within one turn."""
    threat = parse_threat(f"3x40@{degrees}")
    assert parse_threat(str(threat)) == threat
    assert threat_from_dict(threat.to_dict()) == threat
    with pytest.raises(InvalidInput, match="give degrees"):
        parse_threat("3x40@30.00005")


def test_a_text_out_of_a_file_is_bounded():
    with pytest.raises(InvalidInput, match="at most"):
        parse_threat("5x5" + " in" * 20_000, files=False)
