"""What attacks know of PatchCleanser: never a placement given up that some patch wins, and every evaluation counted."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from attacks import ExhaustivePGD, PatchPGD, SparseRS, judge
from attacks.placement import open_placements
from attacks.search import Search
from attacks.surfaces import Attacked
from attacks.surfaces.patchcleanser import PatchCleanserSurface
from robustpatch.defenses.patchcleanser import DoubleMasking, PatchCleanser
from robustpatch.threats.rectangle import PatchThreat
from tests.attacks.toys import Counting, Lookup, images

SIZE = (4, 5)


class Linear(nn.Module):
    """Weights that vary little over the image, so that masks seldom change the answer."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        chance = torch.Generator().manual_seed(seed)
        weight = torch.randn(3, 1, generator=chance) + 0.8 * torch.randn(3, SIZE[0] * SIZE[1], generator=chance)
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5) @ self.weight.T


def cleansed(seed: int, masks: str = "2x3", patch: str = "1x2") -> PatchCleanser:
    """Around a linear network, or (odd seeds) an arbitrary function of the binarised image."""
    network = Lookup(seed, SIZE[0] * SIZE[1], 3, 4.0) if seed % 2 else Linear(seed)
    return PatchCleanser(network, DoubleMasking(masks, patch, "0.5", guard=1e-6), num_classes=3).eval()


def near_grey(count: int, seed: int) -> Tensor:
    """Images of which a patch of black and white outweighs much."""
    return 0.5 + 0.2 * (images(count, SIZE, seed=seed) - images(1, SIZE, seed=100 + seed))


def changed(model: PatchCleanser, x: Tensor, threat: PatchThreat) -> Tensor:
    """Bool[B,L]: whether some content changes the prediction, by trying all."""
    found, clean = [], model.predict(x)
    for row, column in threat.placements(*SIZE).tolist():
        attacked = []
        for content in product((0.0, 1.0), repeat=threat.height * threat.width):
            patch = torch.tensor(content).view(threat.height, threat.width)
            attacked.append(x.clone())
            attacked[-1][:, 0, row : row + threat.height, column : column + threat.width] = patch
        found.append((model.predict(torch.cat(attacked)).view(-1, len(x)) != clean).any(dim=0))
    return torch.stack(found, dim=1)


def surface(model: PatchCleanser, x: Tensor, threat: PatchThreat, most: int | None = None) -> PatchCleanserSurface:
    """With at most so many evaluations for looks at the clean images."""
    return PatchCleanserSurface(model, Attacked(x, model.predict(x), threat, None if most is None else 4 * most))


def search_of(model: nn.Module, x: Tensor, threat: PatchThreat, budget: int | None = None) -> Search:
    y = model.predict(x)
    return Search(model, x, y, threat, touched_only=True, budget=budget, generator=torch.Generator().manual_seed(0))


@settings(max_examples=10)
@given(
    seed=st.integers(0, 10**6),
    patch=st.sampled_from(["1x2", "2x2", "2x3", "4x5"]),
    masks=st.sampled_from(["1x3", "2x2", "2x3"]),
    threat=st.sampled_from([PatchThreat(1, 1), PatchThreat(1, 2)]),
    most=st.sampled_from([None, None, 0, 12, 30]),
)
def test_no_placement_is_closed_where_some_patch_changes_the_prediction(seed, patch, masks, threat, most):
    """All contents, at all placements; of smaller patches than the masks are made for, and of looks cut short."""
    model, x = cleansed(seed, masks, patch), near_grey(3, seed % 100)
    looks, truth = surface(model, x, threat, most), changed(model, x, threat)
    assert torch.equal(looks.prediction, model.predict(x))
    assert not (truth & ~looks.open).any()
    if most is None:
        margins = model.placement_margins(x, threat)
        assert torch.equal(looks.open, margins <= 0)
        certified = model.certify(x, threat).certified
        assert torch.equal(certified, (margins > 0).all(dim=1))
        assert not (certified & truth.any(dim=1)).any()


def test_placements_are_closed_and_open():
    """The property above is not void: on the same images some placements are closed, some open, some lost."""
    threat, counts = PatchThreat(1, 1), torch.zeros(3, dtype=torch.long)
    for seed in range(0, 6, 2):
        model, x = cleansed(seed, patch="2x2"), near_grey(8, seed)
        open_ = surface(model, x, threat).open
        mixed = open_.any(dim=1) & ~open_.all(dim=1)
        counts += torch.stack([(~open_[mixed]).sum(), open_[mixed].sum(), changed(model, x, threat)[mixed].sum()])
    assert (counts > 10).all(), counts


def test_openings_are_what_is_open_the_least_held_first():
    model, x, threat = cleansed(4, "3", "2x2"), near_grey(12, 3), PatchThreat(2, 2)
    search = search_of(model, x, threat)
    looks = search.surface
    assert isinstance(looks, PatchCleanserSurface)
    found = open_placements(search)
    assert 0 < sum(len(each) for each in found) < looks.open.numel()
    for i, each in enumerate(found):
        assert set(each.placement.tolist()) == set(looks.open[i].nonzero()[:, 0].tolist())
        assert torch.equal(looks.resistance[i][each.placement], looks.resistance[i][each.placement].sort().values)
    assert max(len(set(looks.resistance[i][each.placement].tolist())) for i, each in enumerate(found)) > 3


def test_the_share_of_a_patch_that_views_hide():
    """From pixels; 1 exactly where they hide it all."""
    model, x, threat = cleansed(0, "3x3", "2x2"), images(1, SIZE), PatchThreat(2, 3)
    masks = model.defense.mask_set(*SIZE)
    footprints = threat.footprint(threat.placements(*SIZE)[:, None], *SIZE)
    expected = (footprints[:, None] & masks.hidden()).flatten(2).sum(dim=2) / 6
    looks = surface(model, x, threat)
    assert torch.allclose(looks.shares[0], expected)
    assert torch.equal(looks.shares[0] == 1, masks.hiding_at(threat))


@pytest.mark.parametrize(
    "attack", [PatchPGD(steps=3, restarts=4), ExhaustivePGD(steps=2, rounds=1), SparseRS(queries=40)]
)
@pytest.mark.parametrize("budget", [None, 400])
def test_every_masked_image_is_counted_and_no_other(attack, budget):
    """What an attack says that it spent is what the network was asked, forward and backward."""
    model, x, threat = cleansed(2), near_grey(6, 5), PatchThreat(1, 2)
    y = model.predict(x)
    model.network = Counting(model.network).eval()
    found = replace(attack, budget=budget)(model, x, y, threat, generator=torch.Generator().manual_seed(0))
    assert int(found.evaluations.sum()) == model.network.rows
    assert judge(model, x, y, threat, found).broken.any()  # confirmations counted


def test_looks_keep_to_their_part_of_the_budget():
    model, x, threat = cleansed(5, "4x2"), near_grey(6, 5), PatchThreat(1, 2)
    every = len(model.defense.mask_set(*SIZE).unions)
    assert every == 36
    needed = model.predict_with_cost(x)[1]
    for most in (0, 10, 20, every, None):
        looks = surface(model, x, threat, most)
        assert (looks.evaluations >= needed).all()
        assert (looks.evaluations <= needed + max(0, (every if most is None else most) - 8)).all()
        assert bool((looks.evaluations == every).all()) == bool(looks.complete.all()) == (most in (every, None))


@pytest.mark.parametrize("masks", ["1x2", "1x3", "2x3", "4x4"])
def test_no_view_is_asked_that_hides_the_patch(masks):
    """Unless all do: what no content moves would stand in the way of every success."""
    model, x, threat = cleansed(2, masks), near_grey(2, 3), PatchThreat(1, 2)
    looks, hides = surface(model, x, threat), model.defense.mask_set(*SIZE).hiding_at(threat)
    assert not hides.all(dim=1).any()
    site = torch.arange(len(hides)).repeat(2)
    image = torch.arange(2).repeat_interleave(len(hides))
    victim = looks.view(image, site[:, None])
    members = looks.masks.unions
    for row, (asked, valid) in enumerate(zip(victim.union, victim.valid, strict=True)):
        views = asked[valid & (members[asked][:, 0] == members[asked][:, -1])]  # unions of one mask
        assert len(views)
        assert not hides[site[row], views].any()
    assert (victim.cost == victim.valid.sum(dim=1)).all()
    assert int(victim.cost.max()) <= looks.climb_cost


def test_several_patches_go_where_a_view_that_is_not_steady_hides_them_all():
    """The least held first: what the pairs that `several` draws, and that an attack pays for all it asks."""
    model, x, threat = cleansed(2, "2x3", "2*1x2"), near_grey(4, 3), PatchThreat(1, 2, 2)
    looks, chance = surface(model, x, threat), torch.Generator().manual_seed(0)
    hides, shaken = model.defense.mask_set(*SIZE).hiding_at(PatchThreat(1, 2)), looks.lead <= 0
    for i in range(len(x)):
        pairs = torch.tensor([site for site, _ in islice(looks.several(i, chance), 64)])
        assert len({tuple(pair) for pair in pairs.tolist()}) > 5
        assert (hides[pairs].all(dim=1) & shaken[i]).any(dim=1).all()
        resistance = (looks.shares[0][pairs].mean(dim=1) * looks.lead[i].clamp(min=0)).amax(dim=1)
        assert torch.equal(resistance, resistance.sort().values)
    for least in (-1.0, 0.5):  # one view shaken, or none: the least sure
        looks.lead = torch.ones_like(looks.lead).index_fill(1, torch.tensor([2]), least)
        pairs = torch.tensor([site for site, _ in islice(looks.several(0, chance), 64)])
        assert hides[pairs].all(dim=1)[:, 2].all()
    y = model.predict(x)
    certified = model.certify(x, threat).certified
    model.network = Counting(model.network).eval()
    attack = PatchPGD(steps=4, restarts=4)
    found = attack(model, x, y, threat, generator=chance)
    assert int(found.evaluations.sum()) == model.network.rows
    broken = judge(model, x, y, threat, found).broken
    assert broken.any()
    assert not (broken & certified).any()


def test_guided_climbs_break_more_than_blind_ones_for_as_many_evaluations():
    threat, broken = PatchThreat(1, 2), torch.zeros(3, dtype=torch.long)
    for seed in range(2):
        model, x = cleansed(2 * seed), near_grey(12, seed)
        y, certified = model.predict(x), model.certify(x, threat).certified
        for k, attack in enumerate((PatchPGD(budget=300), PatchPGD(budget=300, touched_only=False))):
            found = attack(model, x, y, threat, generator=torch.Generator().manual_seed(0))
            fell = judge(model, x, y, threat, found).broken
            assert not (fell & certified).any()
            broken[k] += fell.sum()
            assert k == 1 or found.evaluations[fell].median() < 100  # done at the first success
        broken[2] += changed(model, x, threat).any(dim=1).sum()
    assert broken[0] > 1.2 * broken[1], broken
    assert broken[0] > 0.9 * broken[2], broken
