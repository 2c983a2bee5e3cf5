"""IBP as an attack sees it: what its bounds close, what they cost, and that a test of the certificate asks none."""

from __future__ import annotations

import pytest
import torch

from attacks import ExhaustivePGD, judge
from attacks.surfaces import Attacked, Surface, surface_of
from attacks.surfaces.ibp import BoundedSurface
from robustpatch import PatchThreat
from robustpatch.defenses.ibp import IBP, BoundedClassifier
from robustpatch.networks.mlp import MLP

ONE = PatchThreat(1, 1)


@pytest.fixture(scope="module")
def model() -> BoundedClassifier:
    torch.manual_seed(0)
    network = MLP(image_size=(3, 4), num_classes=3, in_channels=1, widths=(6,), norm=False)
    return BoundedClassifier(network, IBP(), num_classes=3).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images(model) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(40, 1, 3, 4, generator=torch.Generator().manual_seed(1))
    return x, model.predict(x)


def opened(model, x, y, **options):
    surface = surface_of(model, Attacked(x, y, ONE, **options), True)
    shuffled = [torch.randperm(12, generator=torch.Generator().manual_seed(i)) for i in range(len(x))]
    return surface, surface.open_placements(shuffled, 1)


def test_the_places_that_bounds_leave_open_come_in_their_order(model, images):
    x, y = images
    margins = model.placement_margins(x, ONE)
    surface, found = opened(model, x, y)
    assert isinstance(surface, BoundedSurface)
    assert surface.guides
    for own, places in zip(margins, found, strict=True):
        assert sorted(places.placement.tolist()) == (own < 0).nonzero()[:, 0].tolist()
        assert own[places.placement].diff().ge(0).all()
    assert len({len(places) for places in found}) > 3


def test_what_is_closed_no_content_changes(model, images):
    """Brute force: 101 grey values of the one pixel, at every place."""
    x, y = images
    _, found = opened(model, x, y)
    values = torch.linspace(0, 1, 101)
    for i, places in enumerate(found):
        for site in set(range(12)) - set(places.placement.tolist()):
            patched = x[i].repeat(101, 1, 1, 1)
            patched.flatten(1)[:, site] = values
            assert (model.predict(patched) == y[i]).all()


def test_bounds_are_charged_and_not_asked_where_they_take_more_than_half(model, images):
    x, y = images
    before = opened(model, x, y, budget=47)[0]
    after = opened(model, x, y, budget=48)[0]
    assert (before.guides, before.asking_cost, after.guides, after.asking_cost) == (False, 0, True, 24)
    assert (after.evaluations - before.evaluations).unique().tolist() == [24]


def test_two_patches_and_tests_of_the_certificate_ask_no_bounds(model, images):
    x, y = images
    assert not surface_of(model, Attacked(x, y, PatchThreat(1, 1, 2)), True).guides
    assert type(surface_of(model, Attacked(x, y, ONE), False)) is Surface


def test_every_image_that_can_be_broken_is_broken(model, images):
    x, y = images
    values = torch.linspace(0, 1, 11)
    breakable = torch.zeros(len(x), dtype=torch.bool)
    for site in range(12):
        for value in values:
            patched = x.clone()
            patched.flatten(1)[:, site] = value
            breakable |= model.predict(patched) != y
    found = ExhaustivePGD(steps=5)(model, x, y, ONE, generator=torch.Generator().manual_seed(0))
    broken = judge(model, x, y, ONE, found).broken
    assert bool((broken | ~breakable).all())
    assert 0 < int(breakable.sum()) < len(x)
    assert not bool((broken & model.certify(x, ONE).certified).any())
