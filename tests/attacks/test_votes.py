"""The vote-level adversary against brute force over all that the touched ablations could vote."""

from __future__ import annotations

from itertools import combinations_with_replacement, product

import pytest
import torch

from attacks import judge
from attacks.exhaustive import ExhaustivePGD
from attacks.votes import worst_votes
from robustpatch.ablations.kinds import Blocks, Columns, Rows
from robustpatch.certificates.exact import certify_votes
from robustpatch.certificates.lead import least_lead
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Threshold, Votes, first_argmax
from tests.attacks.toys import Lookup, images, smoothed

P = PatchThreat


def votes(ablation, size, classes, seed, batch=24):
    """Random votes, from scattered to nearly unanimous; several classes an ablation, or none."""
    generator = torch.Generator().manual_seed(seed)
    n = ablation.count(*size)
    share = torch.linspace(0.3, 0.95, batch)[:, None, None]
    cast = torch.rand(batch, n, classes, generator=generator) < 0.25
    cast[..., seed % classes : seed % classes + 1] |= torch.rand(batch, n, 1, generator=generator) < share
    return cast


def refutable(cast, ablation, threat, size):
    """Whether some placement, and some votes of the ablations it shares a pixel with, change the prediction."""
    masks = ablation.masks(*size)
    corners = threat.placements(*size)
    classes = cast.shape[2]
    prediction = first_argmax(cast.sum(dim=1).int())
    found = torch.zeros(len(cast), dtype=torch.bool)
    for site in combinations_with_replacement(range(len(corners)), threat.count):
        footprint = threat.footprint(corners[list(site)][None], *size)[0]
        touched = (masks & footprint).flatten(1).any(dim=1)
        for sets in product(product((False, True), repeat=classes), repeat=int(touched.sum())):
            changed = cast.clone()
            changed[:, touched] = torch.tensor(sets).reshape(-1, classes)
            found |= first_argmax(changed.sum(dim=1).int()) != prediction
    return found


CASES = [
    (Columns(1), (2, 8), P(1, 2), 3),
    (Columns(2), (2, 9), P(1, 1), 3),
    (Columns(2, 3), (1, 14), P(1, 2), 3),
    (Rows(1), (8, 2), P(2, 1), 3),
    (Blocks(1), (3, 3), P(1, 2), 3),
    (Columns(1), (1, 8), P(1, 1, 2), 3),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("ablation", "size", "threat", "classes"), CASES, ids=str)
def test_it_is_the_worst_there_is(ablation, size, threat, classes, seed):
    """Refuted just where brute force over all votes of the touched ablations finds a change; the votes shown do it."""
    cast = votes(ablation, size, classes, seed)
    worst = worst_votes(cast, ablation, threat, size)
    truth = refutable(cast, ablation, threat, size)
    assert torch.equal(worst.refuted, truth)
    assert truth.any()
    assert not truth.all()
    prediction = first_argmax(cast.sum(dim=1).int())
    assert torch.equal(worst.lead < 0, worst.refuted)
    footprint = threat.footprint(threat.placements(*size)[worst.placement], *size)
    touched = (ablation.masks(*size)[None] & footprint[:, None]).flatten(2).any(dim=2)
    assert torch.equal(touched.sum(dim=1), worst.touched)
    assert torch.equal(worst.votes[~touched], cast[~touched])
    changed = first_argmax(worst.votes.sum(dim=1).int())
    assert torch.equal(changed != prediction, worst.refuted)
    none = torch.zeros_like(cast)
    assert torch.equal(certify_votes(Votes(cast, none), ablation, threat, size).certified, ~worst.refuted)


def test_unions_beyond_counting_are_gathered_greedily(monkeypatch):
    """Where there are too many unions, what is found is still attained, and no better than the best."""
    cast, ablation, threat, size = votes(Columns(1), (1, 8), 3, 1), Columns(1), P(1, 2, 2), (1, 8)
    best = worst_votes(cast, ablation, threat, size)
    monkeypatch.setattr("attacks.votes._UNIONS", 0)
    greedy = worst_votes(cast, ablation, threat, size)
    assert (greedy.lead >= best.lead).all()
    assert (greedy.lead == best.lead).float().mean() > 0.5
    assert torch.equal(
        greedy.refuted, first_argmax(greedy.votes.sum(dim=1).int()) != first_argmax(cast.sum(dim=1).int())
    )


def test_no_real_patch_does_more():
    """Every image that a patch breaks is refuted; the lead that a patch leaves is never below the adversary's."""
    model, threat, size = smoothed(Lookup(5, 2 * 30, 3, favour=2.0), Columns(2), 3, Threshold(0.3)), P(2, 2), (5, 6)
    x = images(30, size, binary=True)
    y, cast = model.predict(x), model.votes(x).cast
    worst = worst_votes(cast, model.ablation, threat, size)
    proposal = ExhaustivePGD(steps=1, rounds=0)(model, x, y, threat, generator=torch.Generator())
    broken = judge(model, x, y, threat, proposal).broken
    assert broken.any()
    assert (worst.refuted | ~broken).all()
    after = least_lead(model.votes(proposal.x_adv).cast.sum(dim=1), y)
    assert torch.equal(after < 0, broken)
    assert (after >= worst.lead).all()


def test_few_images_at_once_are_as_many(monkeypatch):
    """How many images are worked on together changes nothing."""
    case = votes(Columns(2), (2, 9), 3, 0), Columns(2), P(1, 1), (2, 9)
    together = worst_votes(*case)
    monkeypatch.setattr("attacks.votes._CELLS", 1)
    assert all(torch.equal(getattr(together, name), found) for name, found in vars(worst_votes(*case)).items())


def test_no_images():
    """An empty batch is an empty answer."""
    worst = worst_votes(torch.zeros(0, 6, 3, dtype=torch.bool), Columns(1), P(1, 1), (2, 6))
    assert worst.refuted.shape == (0,)
    assert worst.placement.shape == (0, 1)


@pytest.mark.parametrize(("count", "height", "width"), [(2, 4, 5), (3, 4, 4), (4, 4, 4)])
def test_more_patches_than_touched_sets(count, height, width):
    """Where patches are so large that few sets are told apart, some patches lie on one another."""
    cast = torch.nn.functional.one_hot(torch.zeros(2, 5, dtype=torch.long), 3).bool()
    worst = worst_votes(cast, Columns(2), PatchThreat(height, width, count), (4, 5))
    assert worst.placement.shape == (2, count)
    assert worst.refuted.all()
    assert worst.touched.tolist() == [5, 5]
