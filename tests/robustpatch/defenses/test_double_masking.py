"""PatchCleanser on tables of predictions: whatever an adversary writes where he is seen, certified results stay."""

from __future__ import annotations

from itertools import combinations_with_replacement, product

import pytest
import torch

from robustpatch.defenses.double_masking import MaskedPredictions, certify, closed, infer, leads, steady
from robustpatch.defenses.masking import Boxes, MaskSet
from robustpatch.threats.parse import parse_threat
from robustpatch.threats.rectangle import PatchThreat

GAP = 4.0


def looks_at(masks: MaskSet, tables: torch.Tensor, classes: int, gap: float = GAP) -> MaskedPredictions:
    """A classifier that says what stands in `tables` [B,U]; it refuses to be asked the same twice."""
    asked = torch.zeros(tables.shape, dtype=torch.bool)

    def score(image, union):
        assert not asked[image, union].any()
        asked[image, union] = True
        return gap * torch.nn.functional.one_hot(tables[image, union], classes).float()

    return MaskedPredictions(masks, len(tables), score)


def mask_set(text: str) -> MaskSet:
    """Of images of 4×6: "2x3" masks for a patch of 1×2, or for "2*" so many."""
    count, _, masks = text.rpartition("*")
    down, across = map(int, masks.split("x"))
    return Boxes.for_patch(PatchThreat(1, 2, int(count or 1)), (down, across), (4, 6))


def hiding(masks: MaskSet) -> list[torch.Tensor]:
    """For each choice of placements of the patches, which unions hide them all: Bool[U], from pixels."""
    hidden = masks.hidden()[masks.unions].any(dim=1)
    one = PatchThreat(1, 2)
    footprints = one.footprint(one.placements(4, 6)[:, None], 4, 6)
    several = combinations_with_replacement(footprints, masks.count)
    found = [(~torch.stack(some).any(dim=0) | hidden).flatten(1).all(dim=1) for some in several]
    return list(torch.unique(torch.stack(found), dim=0))


def all_tables(unions: int, classes: int) -> torch.Tensor:
    return torch.tensor(list(product(range(classes), repeat=unions)), dtype=torch.long)


def plain_inference(table: list[int], masks: MaskSet) -> int:
    """Algorithm 1, word for word."""
    pair = masks.pair.tolist()
    views = range(len(pair))
    labels = [table[pair[v][v]] for v in views]
    if len(set(labels)) == 1:
        return labels[0]
    majority = max(sorted(set(labels)), key=labels.count)
    for v in views:
        if labels[v] != majority and all(table[pair[v][w]] == labels[v] for w in views):
            return labels[v]
    return majority


@pytest.mark.parametrize(
    ("text", "classes"), [("1x1", 3), ("1x2", 3), ("1x3", 3), ("2x2", 2), ("2*1x2", 3), ("2*1x3", 3), ("2*2x2", 2)]
)
def test_no_adversary_changes_a_certified_result(text, classes):
    """Every clean table, every placement, every table that agrees with the clean one where the patch is hidden."""
    masks = mask_set(text)
    clean = all_tables(len(masks.unions), classes)
    sets = masks.hiding(PatchThreat(1, 2, masks.count))
    found, certified = certify(looks_at(masks, clean, classes), 0.0, sets)
    assert certified.any()
    assert torch.equal(certified, certify(looks_at(masks, clean, classes), 0.0)[1])  # each view is needed
    for covered in hiding(masks):
        assert covered.any()
        free = all_tables(int((~covered).sum()), classes)
        for table, result in zip(clean[certified], found[certified].tolist(), strict=True):
            attacked = table.repeat(len(free), 1)
            attacked[:, ~covered] = free
            assert (infer(looks_at(masks, attacked, classes)) == result).all()


@pytest.mark.parametrize(
    ("made_for", "masks", "size", "classes"),
    [
        ("1x2", (1, 3), (1, 4), 3),  # each mask alone in hiding some placement
        ("1x3", (1, 3), (1, 5), 3),
        ("1x4", (1, 3), (1, 6), 3),  # of one pixel, most placements under two masks
        ("2x2", (2, 2), (3, 3), 2),  # of one pixel, the middle one under all four masks
        ("1x3", (1, 4), (1, 6), 2),
    ],
)
def test_no_adversary_changes_a_closed_placement_and_one_changes_every_other(made_for, masks, size, classes):
    """All clean tables against all adversaries of one pixel. Where most views show it, what is not closed is changed.

    And the certificate says that all placements are closed, no less and no more.
    """
    sets, threat = Boxes.for_patch(parse_threat(made_for, size), masks, size), PatchThreat(1, 1)
    tables, hides = all_tables(len(sets.unions), classes), sets.hiding_at(threat)
    looks = looks_at(sets, tables, classes)
    looks.ask(*torch.broadcast_tensors(torch.arange(len(tables))[:, None], torch.arange(len(sets.unions))))
    found = infer(looks)
    safe = closed(steady(looks, found, 0.0), hides)
    assert torch.equal(safe, closed(leads(looks, found, 0.0)[0] > 0, hides))
    for own, held in zip(hides, safe.T, strict=True):
        fixed = torch.unique(sets.pair[own])
        seen = torch.unique(tables[:, fixed], dim=0, return_inverse=True)[1]  # tables alike for who hides the pixel
        least = found.new_full((int(seen.max()) + 1,), classes).scatter_reduce(0, seen, found, "amin")
        most = torch.zeros_like(least).scatter_reduce(0, seen, found, "amax")
        changed = (least != most)[seen]
        assert held.any()
        assert not (changed & held).any()
        if 2 * int(own.sum()) < len(own):
            assert (changed | held).all()
    assert torch.equal(certify(looks_at(sets, tables, classes), 0.0, sets.hiding(threat))[1], safe.all(dim=1))


@pytest.mark.parametrize("text", ["2x3", "4x3", "2*2x2"])
def test_no_adversary_of_many_masks_changes_a_certified_result(text):
    """The same with more masks: tables that are wrong under few unions, and random adversaries, one-sided ones too."""
    masks, chance = mask_set(text), torch.Generator().manual_seed(0)
    unions, classes = len(masks.unions), 3
    clean = torch.full((unions + 1, unions), 1)
    clean[range(unions), range(unions)] = 0  # each wrong under one union alone, the last under none
    found, certified = certify(looks_at(masks, clean, classes), 0.0, masks.hiding(PatchThreat(1, 2, masks.count)))
    assert certified.any()
    for table, result in zip(clean[certified], found[certified].tolist(), strict=True):
        for covered in hiding(masks):
            attacked = torch.randint(classes, (400, unions), generator=chance)
            wrong = torch.rand(400, unions, generator=chance) < torch.rand(400, 1, generator=chance)
            attacked[200:] = torch.where(wrong, 2, 1)[200:]
            attacked[:, covered] = table[covered]
            assert (infer(looks_at(masks, attacked, classes)) == result).all()


@pytest.mark.parametrize("text", ["1x2", "1x3", "2x2", "2x3", "4x3", "2*1x3", "2*2x2"])
def test_inference_and_certificate_are_those_of_plain_loops(text):
    """Lazy, shared, batched and in another order, and the same."""
    masks, chance = mask_set(text), torch.Generator().manual_seed(1)
    unions = len(masks.unions)
    few = all_tables(unions, 3) if unions < 7 else torch.randint(3, (300, unions), generator=chance)
    rare = torch.where(torch.rand(600, unions, generator=chance) < 2 / unions, 2, 1)
    rare[300:, masks.pair[1]] = 0  # a view under which nothing more changes the answer
    tables = torch.cat([few, rare])
    found, certified = certify(looks_at(masks, tables, 3), 0.0)
    assert found.tolist() == [plain_inference(table, masks) for table in tables.tolist()]
    assert torch.equal(infer(looks_at(masks, tables, 3)), found)
    assert certified.tolist() == [len(set(table)) == 1 for table in tables.tolist()]
    assert 0 < int(certified.sum()) < len(tables)


def test_majority_of_equals_is_the_lowest_class():
    masks = mask_set("2x2")
    table = torch.tensor([[2, 1, 2, 1, 0, 0, 0, 0, 0, 0]])
    assert infer(looks_at(masks, table, 3)).tolist() == [1]


def test_a_gap_of_twice_the_guard_is_not_enough():
    """Either logit may move by the guard; at 2·guard both reach a tie, which the lower class wins."""
    masks = mask_set("2x2")
    table = torch.ones(1, len(masks.unions), dtype=torch.long)
    for gap, certified in ((0.5, False), (0.5 + 2**-20, True)):
        assert certify(looks_at(masks, table, 2, gap=gap), 0.25)[1].tolist() == [certified]
    for union in range(len(masks.unions)):  # a single union too close
        looks = MaskedPredictions(
            masks, 1, lambda _, u, close=union: torch.stack([0.0 * u, torch.where(u == close, 0.5, 1.0)], 1)
        )
        assert certify(looks, 0.25)[1].tolist() == [False]


def test_nothing_is_asked_twice_and_no_more_than_it_takes():
    masks = Boxes.for_patch(PatchThreat(5, 5), (6, 6), (28, 28))
    sure = torch.zeros(1, 666, dtype=torch.long)
    pair = sure.clone()
    pair[0, masks.pair[3, 4]] = 1
    single = sure.clone()
    single[0, 3] = 1
    looks = looks_at(masks, torch.cat([sure, pair, single]), 2)
    prediction, certified = certify(looks, 0.0)
    assert prediction.tolist() == [0, 0, 0]
    assert certified.tolist() == [True, False, False]
    asked = looks.evaluations.tolist()
    assert asked[0] == 666
    assert asked[1] < 666
    assert asked[2] <= 36 + 35
    infer(looks)
    assert looks.evaluations.tolist() == asked


def test_unsure_views_are_paired_first():
    """A failing pair of the two least sure views is the first asked."""
    masks = Boxes.for_patch(PatchThreat(5, 5), (6, 6), (28, 28))
    gaps = torch.full((666,), GAP)
    gaps[[8, 20]] = 1.0

    def score(image, union):
        failing = union == masks.pair[8, 20]
        first = torch.where(failing, -1.0, gaps[union])
        return torch.stack([first, torch.zeros_like(first)], dim=1)

    looks = MaskedPredictions(masks, 1, score)
    assert certify(looks, 0.0)[1].tolist() == [False]
    assert int(looks.evaluations) == 36 + 2
