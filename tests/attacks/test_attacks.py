"""Accounts and budgets of the searches by gradient, and the oracle. What every attack owes: test_properties."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attacks import ExhaustivePGD, LaVAN, Oracle, PatchPGD, exhaustive, judge
from robustpatch.ablations.kinds import Columns
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from tests.attacks.toys import Level, Lookup, Plain, images, run, smoothed, worlds

PGD = PatchPGD(steps=2, restarts=3, guided=False)
EXHAUSTIVE = ExhaustivePGD(steps=1, rounds=1)
SIZE = (5, 6)
THREAT = PatchThreat(2, 3)


def test_an_unpruned_attack_scores_all_ablations():
    """Every forward pass of `unpruned` asks for all N ablations; a pruned one asks for no more than it touches."""
    model, x, threat = smoothed(Level(2), Columns(1), 2), torch.zeros(1, 1, *SIZE), PatchThreat(2, 2)
    rows: list[int] = []
    model.certify(x, threat)
    y = model.predict(x)
    model.base.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    for attack in (PatchPGD(steps=3, restarts=1, batch=1), ExhaustivePGD(steps=3, rounds=0, batch=1)):
        rows.clear()
        run(attack.unpruned(None), model, x, threat, y)
        assert set(rows) == {6}
    rows.clear()
    run(PatchPGD(steps=3, restarts=1, guided=False, batch=1), model, x, threat, y)
    assert rows == [6, 2, 2, 2, 2]  # the clean votes, then what is touched


@pytest.mark.parametrize("attack", [PGD, PGD.unpruned(None), EXHAUSTIVE, EXHAUSTIVE.unpruned(None)])
def test_attacks_see_a_budget_of_none_as_no_limit(attack):
    """Without a budget, each attack spends what its own numbers say."""
    model, x = smoothed(Lookup(0, 2 * 30, 3, favour=9.0), Columns(2), 3), images(2, SIZE)
    pruned = attack.touched_only
    n = 4 if pruned else 6
    threat = PatchThreat(2, 3)
    proposal = run(attack, model, x, threat)
    assert not judge(model, x, model.predict(x), threat, proposal).broken.any()
    if isinstance(attack, PatchPGD):
        assert (proposal.evaluations == 3 * (2 * 2 + 1) * n + 6).all()
    elif not pruned:
        assert (proposal.evaluations == 6 + 6 * (16 * 3 + 4 * 5)).all()


def test_plain_classifiers_are_attacked():
    """An undefended classifier is broken by both attacks, at one evaluation for each image scored."""
    model, x = Plain(30).eval(), images(6, SIZE)
    y, threat = model(x).argmax(dim=1), PatchThreat(4, 5)
    for attack in (PatchPGD(steps=8, restarts=4), ExhaustivePGD(steps=8, rounds=0)):
        proposal = run(attack, model, x, threat)
        outcome = judge(model, x, y, threat, proposal)
        assert outcome.broken.float().mean() > 0.6
        assert (proposal.evaluations <= (2 * 8 + 1) * 4).all()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("attack", [PatchPGD(steps=2, restarts=2), LaVAN(steps=2, target=1)], ids=lambda a: a.name)
def test_images_come_in_the_precision_of_a_plain_classifier(attack, kind):
    """Its weights may be in another than the images; those of the proposal are the caller's still."""
    model, x, threat = Plain(30).eval().to(kind), images(3, (5, 6)), PatchThreat(2, 3)
    y = model(x.to(kind)).argmax(dim=1)
    proposal = attack(model, x, y, threat, generator=torch.Generator().manual_seed(0))
    assert proposal.x_adv.dtype == x.dtype
    outcome = judge(model, x, y, threat, proposal)
    assert torch.equal(outcome.prediction, model(proposal.x_adv.to(kind)).argmax(dim=1))


def test_gradients_find_what_chance_does_not():
    """A wide patch of narrow aim: raising the pixels of every strip at once takes the gradient, not luck."""
    model = smoothed(Level(2), Columns(1), 2)
    x, threat = torch.zeros(4, 1, 1, 9), PatchThreat(1, 9)
    attack = PatchPGD(steps=10, restarts=1)
    assert judge(model, x, torch.zeros(4, dtype=torch.long), threat, run(attack, model, x, threat)).broken.all()
    y = torch.ones(4, dtype=torch.long)
    ones = torch.ones_like(x)
    assert judge(model, ones, y, threat, run(attack, model, ones, threat)).broken.all()


def test_refusals_of_the_searches():
    """The oracle takes no more patches than it can try."""
    model, x = smoothed(Level(2), Columns(2), 2), images(1, SIZE)
    with pytest.raises(InvalidInput, match="oracle would try"):
        run(Oracle(), model, x, PatchThreat(5, 5))


@pytest.mark.parametrize("count", [1, 2])
def test_the_oracle_tries_every_patch(count):
    """As many images as zeros and ones make, and the hit it reports is a hit."""
    model, x = smoothed(Lookup(4, 2 * 9, 3, favour=0.0), Columns(1), 3), images(3, (3, 3), binary=True)
    threat = PatchThreat(1, 2, count)
    y = model.predict(x)
    proposal = run(Oracle(), model, x, threat, y)
    broken = judge(model, x, y, threat, proposal).broken
    truth = torch.stack([(model.predict(worlds(image, threat)) != y[i]).any() for i, image in enumerate(x)])
    assert torch.equal(broken, truth)
    sites = 6 if count == 1 else 21
    assert (proposal.evaluations[~broken] == sites * 4**count).all()


class Unmoved(torch.nn.Module):
    """Predicts class 0 whatever it is shown."""

    def forward(self, x):
        return torch.tensor([1.0, 0.0]) + 0 * x.flatten(1).mean(dim=1, keepdim=True)


def sweeps(attack, monkeypatch):
    """The steps and the number of the climbs of each sweep of one image of 4x5 pixels, and what all of it cost."""
    seen, real = [], exhaustive.climb

    def noting(search, queues, ascent, **more):
        seen.append((ascent.steps, len(queues[0])))
        return real(search, queues, ascent, **more)

    monkeypatch.setattr(exhaustive, "climb", noting)
    x, y = torch.rand(1, 1, 4, 5), torch.zeros(1, dtype=torch.long)
    found = attack(Unmoved().eval(), x, y, PatchThreat(1, 1), generator=torch.Generator().manual_seed(0))
    return seen, int(found.evaluations), float(found.visited)


def test_a_budget_pays_for_every_sweep(monkeypatch):
    """The first sweep leaves what the longer ones cost: 5 + 9/2 + 17/4 passes for each of its places; 21 are spent on
    the clean image and on a look at each place.
    """
    attack = ExhaustivePGD(steps=2, rounds=2, keep=0.5, budget=200)
    seen, spent, visited = sweeps(attack, monkeypatch)
    assert seen[:3] == [(2, 13), (4, 6), (8, 3)]
    assert 190 < spent < 200 + 17
    assert visited == 1.0  # by the looks
    assert sweeps(replace(attack, budget=40), monkeypatch)[2] < 1.0  # looks take a quarter, at half of the places
    assert sweeps(replace(attack, budget=10_000), monkeypatch)[0][:3] == [(2, 20), (4, 10), (8, 5)]


def test_tests_of_certificates_visit_all_places_before_any_again(monkeypatch):
    attack = ExhaustivePGD(steps=2, rounds=2, keep=0.5, budget=200)
    assert sweeps(attack.unpruned(200), monkeypatch)[0][0] == (2, 20)
