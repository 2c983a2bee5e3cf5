"""Models whose `predict` is more than the argmax of their scores: what only it shows is found too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks import ExhaustivePGD, LaVAN, PatchPGD, SparseRS, standard
from attacks.base import judge
from attacks.pasting import crop
from attacks.predict_sample import PredictSample
from robustpatch.ablations.kinds import Columns
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.defenses import parse_defense
from robustpatch.threats.rectangle import PatchThreat
from tests.attacks.toys import Level, smoothed

ONE = PatchThreat(1, 1)
DARK, ZEROS = torch.full((2, 1, 3, 3), 0.1), torch.zeros(2, dtype=torch.long)


class Behind(nn.Module):
    """Scores that are sure of class 0, and a filter behind them that anything bright in the corner deceives."""

    num_classes = 2

    def __init__(self) -> None:
        super().__init__()
        self._asked: list[int] = []

    def forward(self, x):
        return torch.stack([torch.ones(len(x)), torch.zeros(len(x))], 1) + 0 * x.sum((1, 2, 3))[:, None]

    def predict(self, x):
        self._asked.append(len(x))
        return (x[:, 0, 0, 0] > 0.3).long()


def attack(one, model, x=DARK, budget=None):
    generator = torch.Generator().manual_seed(0)
    return one.unpruned(budget)(model.eval(), x, ZEROS[: len(x)], ONE, generator=generator)


@pytest.mark.parametrize(
    "one", [standard(), PatchPGD(restarts=40), SparseRS(queries=200), ExhaustivePGD()], ids=lambda one: one.name
)
def test_what_no_score_shows_is_found(one):
    """Flat scores that no patch moves: `predict` itself is asked, and what it says breaks the image."""
    found = attack(one, Behind())
    assert judge(Behind(), DARK, ZEROS, ONE, found).broken.all()
    assert found.broken is not None
    assert found.broken.all()


def test_predict_is_asked_about_one_in_eight_within_the_budget():
    """Of a model of which nothing changes: as many evaluations as were spent, and no more than the budget allows."""

    class Steady(Behind):
        def predict(self, x):
            return 0 * super().predict(x)

    model = Steady()
    found = attack(SparseRS(queries=200), model, DARK[:1])
    asked = sum(model._asked)
    assert 200 / 8 * 0.6 < asked < 200 / 8 * 1.4
    assert int(found.evaluations) == 200 + asked
    for budget in (1, 2, 57):
        assert int(attack(SparseRS(queries=200), Steady(), DARK[:1], budget).evaluations) == budget

    class Dear(Steady):
        def evaluations(self, height, width):
            return 1, 20

    model = Dear()  # the clean image, nine patches at once that are better than none before, and one of these
    assert int(attack(ExhaustivePGD(), model, DARK[:1], 30).evaluations) == 20 + 9 + 20
    assert model._asked == [1, 1]


def test_better_than_the_best_is_always_asked_about():
    """Where the scores lead to it, the very first patch that is near enough is shown to `predict`."""

    class Late(Behind):
        """The scores say at 0.9 what `predict` says at 0.6."""

        def forward(self, x):
            level = (x.amax((1, 2, 3)) - 0.9) * 4
            return torch.stack([-level, level], 1)

        def predict(self, x):
            return (x.amax((1, 2, 3)) > 0.6).long()

    found = attack(LaVAN(steps=40, step=0.04), Late())
    assert found.broken is not None
    assert found.broken.all()
    assert float(found.x_adv.max()) < 0.68


def test_what_is_tried_on_an_image_does_not_depend_on_others():
    """Which patches `predict` is shown is told by these alone."""
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(1)) / 4
    whole = attack(SparseRS(queries=60), Behind(), x)
    for i in range(2):
        alone = attack(SparseRS(queries=60), Behind(), x[i : i + 1])
        assert int(alone.evaluations) == int(whole.evaluations[i])
        assert torch.equal(alone.x_adv[0], whole.x_adv[i])


def test_the_choice_is_even():
    """About one in eight of plain contents at all places, of random bits and values; tried again, another eighth."""
    sites = torch.cartesian_prod(torch.arange(25), torch.arange(25))[:, None]
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(625, 3, 28, 28, generator=generator)
    every = torch.arange(625) % 2
    for x in (torch.zeros_like(noise), torch.ones_like(noise), noise, noise.round(), noise.bfloat16()):
        content, shares = crop(x, sites, (3, 3)), PredictSample(2)
        some = shares.chosen(every, content, sites)
        assert 0.09 < float(some.float().mean()) < 0.16
        assert torch.equal(some[5:9], PredictSample(2).chosen(every[5:9], content[5:9], sites[5:9]))
        again = shares.chosen(every, content, sites)
        assert 0 < float((some & again).float().mean()) < 0.05
        for _ in range(20):
            some |= shares.chosen(every, content, sites)
        assert float(some.float().mean()) > 0.85


def test_whose_predict_is_asked():
    """Whoever defines `predict` or `forward` outside of this package, and does not declare to answer by chance."""

    class Other(SmoothedClassifier):
        def predict(self, x):
            return super().predict(x)

    class Chance(Behind):
        randomized = True

    ours = smoothed(Level(2), Columns(1), 2)
    assert not as_classifier(ours).predicts_apart
    assert not as_classifier(
        parse_defense("ibp").wrap(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), num_classes=2)
    ).predicts_apart
    assert not as_classifier(nn.Flatten()).predicts_apart
    assert not as_classifier(Chance()).predicts_apart
    assert as_classifier(Behind()).predicts_apart
    assert as_classifier(Other(Level(2), Columns(1), num_classes=2)).predicts_apart
    ours.predict = lambda x: torch.zeros(len(x), dtype=torch.long)
    assert as_classifier(ours).predicts_apart
