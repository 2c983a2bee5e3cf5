"""Attacks on randomized classifiers: they run as on any module, and are judged by samples they have not seen."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks import Proposal, judge, parse_attacks
from robustpatch.ablations.kinds import Columns
from robustpatch.ablations.sparse import SparseAblation
from robustpatch.certificates.randomized import Sampling
from robustpatch.classifiers.randomized import RandomizedClassifier
from robustpatch.threats.rectangle import PatchThreat
from tests.as_evaluator import evaluations, predict, referee
from tests.attacks.toys import Level, flipped, images, strip

SIZE, THREAT = (3, 6), PatchThreat(2, 2)
FEW = Sampling(selection=40, estimation=400, prediction=100)


def classifier(ablation, base=None) -> RandomizedClassifier:
    """A random ablation votes for class 1 where the brightest pixel it keeps is above one half."""
    return RandomizedClassifier(base or Level(2), ablation, num_classes=2, sampling=FEW, views=32, chunk=4_000).eval()


def dim(batch=3):
    """Nearly black images, all different: class 0."""
    return images(batch, SIZE) * 0.1


@pytest.mark.parametrize("name", ["pgd:3", "exhaustive", "sparse-rs:60", "roa", "natural:20", "standard"])
@pytest.mark.parametrize("ablation", [Columns(2), SparseAblation(4)], ids=str)
def test_attacks_run_and_break_what_can_be_broken(ablation, name):
    """A bright patch of 2×2 of 18 pixels is seen by two thirds of the sets of 4, and by 3 of 6 bands, where others
    vote for class 1 already. Proposals stay within the threat, and evaluations are ablations scored.
    """
    x = dim()
    x[:, :, :, 5] = 1 if isinstance(ablation, Columns) else 0.1
    model = classifier(ablation)
    y = predict(referee(model), x)
    assert (y == 0).all()
    (attack,) = parse_attacks(name, budget=40_000)
    generator = torch.Generator().manual_seed(0)
    proposal = attack(model, x, y, THREAT, generator=generator)
    outcome = judge(model, x, y, THREAT, proposal)
    assert outcome.contained.all()
    assert outcome.in_range.all()
    assert (proposal.evaluations >= evaluations(model, x)[1]).all()
    if name != "natural:20":
        assert outcome.broken.all()


def test_attacks_cannot_break_what_is_certified():
    """A patch of one pixel of 18 reaches one sixth of what is kept: certified, and never broken."""
    model, x = classifier(SparseAblation(3)), dim()
    one = PatchThreat(1, 1)
    certificate = model.certify(x, one)
    assert certificate.certified.all()
    for name in ("pgd:4", "sparse-rs:40"):
        (attack,) = parse_attacks(name, steps=None, budget=20_000)
        proposal = attack(model, x, certificate.prediction, one, generator=torch.Generator().manual_seed(0))
        assert not judge(model, x, certificate.prediction, one, proposal).broken.any()


def test_an_image_is_attacked_alike_in_any_company():
    """The samples are the image's own, and so is chance."""
    model, x = classifier(SparseAblation(3)), dim()
    y = torch.zeros(3, dtype=torch.long)
    (attack,) = parse_attacks("sparse-rs:30")
    whole = attack(model, x, y, THREAT, generator=torch.Generator().manual_seed(5))
    alone = attack(model, x[1:2], y[1:2], THREAT, generator=torch.Generator().manual_seed(5))
    assert torch.equal(whole.x_adv[1:2], alone.x_adv)


def test_the_judge_asks_the_referee(monkeypatch):
    """A patch that changes what the samples at hand say, and not what others do, is no success; the reverse is."""

    class Model(nn.Module):
        randomized = True

        def predict(self, x):
            return torch.ones(len(x), dtype=torch.long)

    class Other(nn.Module):
        def __init__(self, answer):
            super().__init__()
            self.answer = answer

        def predict(self, x):
            return torch.full((len(x),), self.answer)

    x, y = torch.zeros(1, 1, *SIZE), torch.zeros(1, dtype=torch.long)
    proposal = Proposal(x, torch.zeros(1, 1, 2, dtype=torch.long), y, torch.zeros(1))
    assert judge(Model(), x, y, THREAT, proposal).broken.all()
    for answer, broken in ((0, False), (1, True), (-1, False)):
        monkeypatch.setattr(Model, "referee", lambda self, answer=answer: Other(answer), raising=False)
        outcome = judge(Model(), x, y, THREAT, proposal)
        assert (bool(outcome.broken), int(outcome.prediction)) == (broken, answer)


def test_the_referee_is_the_truth_of_enumerable_ablations():
    """An image that a patch of zeros and ones flips in the ideal classifier is judged broken by that patch."""
    x = images(4, (2, 5), binary=True)
    smoothed = strip((2, 5), classes=2)
    model = RandomizedClassifier.of(smoothed, FEW)
    threat = PatchThreat(1, 2)
    (attack,) = parse_attacks("exhaustive")
    y = referee(model).predict(x)
    proposal = attack(model, x, y, threat, generator=torch.Generator().manual_seed(0))
    outcome = judge(model, x, y, threat, proposal)
    assert torch.equal(outcome.prediction, referee(model).predict(proposal.x_adv))
    assert not (outcome.broken & ~flipped(referee(model), x, threat)).any()
