"""Classifiers whose outputs or gradients are no numbers: no attack counts them as a success, or is disarmed by them."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from torch import nn

from attacks import UniversalPatch, judge
from attacks.base import Proposal
from attacks.climb import Ascent, Task, climb
from attacks.search import Search
from attacks.surfaces import whole_view
from attacks.universal import train_patch
from robustpatch.ablations.kinds import Columns
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Threshold, TopOne
from tests.as_evaluator import predict
from tests.attacks.toys import Plain, images, registered, smoothed

SIZE = (4, 5)
THREAT = PatchThreat(2, 2)


class Lost(nn.Module):
    """The class 0, and outputs of `value` for an image with any other pixel than one half."""

    def __init__(self, value: float, classes: int = 3) -> None:
        super().__init__()
        self.value, self.classes = value, classes

    def forward(self, x):
        seen = x[:, : max(1, x.shape[1] // 2)]
        strange = ((seen != 0.5) & (seen != 0)).flatten(1).any(dim=1)
        logits = torch.arange(self.classes, 0, -1, device=x.device).float() + 0 * seen.flatten(1).sum(dim=1)[:, None]
        return torch.where(strange[:, None], self.value, logits)


def scene(count=2):
    return torch.full((count, 1, *SIZE), 0.5), torch.zeros(count, dtype=torch.long)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_the_judge_counts_no_such_answer(value):
    """Refused, where `predict` is the argmax of the outputs; where it is the votes', those of the others decide."""
    x, y = scene()
    x_adv = x.clone()
    x_adv[:, :, 1, 1] = 1.0
    proposal = Proposal(x_adv, torch.ones(2, 1, 2, dtype=torch.long), y, torch.ones(2))
    model = Lost(value).eval()
    assert predict(model, x).tolist() == [0, 0]
    with pytest.raises(InvalidInput, match=r"NaN.*mend"):
        judge(model, x, y, THREAT, proposal)
    for rule in (TopOne(1e-6), Threshold(0.3)):
        voting = smoothed(Lost(value), Columns(2), 3, rule)
        assert predict(voting, x).tolist() == [0, 0]
        found = judge(voting, x, y, THREAT, proposal)
        assert found.prediction.tolist() == [0, 0]
        assert not found.broken.any()
        x_all = torch.where(torch.arange(5) % 2 == 0, 1.0, x)  # no view is left without an odd pixel
        assert predict(voting, x_all).tolist() == [-1, -1]


QUICK_ONES = [pytest.param(name, marks=pytest.mark.slow if name == "standard" else ()) for name in registered()]
"""Of "standard", every member is among them."""


@pytest.mark.parametrize("name", QUICK_ONES)
@pytest.mark.parametrize("made", ["plain", "by votes"])
def test_no_attack_breaks_a_classifier_by_such_an_answer(name, made):
    """Nothing else can change its answer: every attack stops, where it meets one, or fails. Of views those without an
    answer have no part in the vote, and there every attack fails.
    """
    x, y = scene()
    x[1, :, :2, :2] = 0.0
    attack = registered(steps=2, tries=2, restarts=2, queries=20, rows=4)[name]
    model = Lost(torch.nan).eval() if made == "plain" else smoothed(Lost(torch.nan), Columns(2), 3, TopOne(1e-6))
    only_grey = made == "by votes" or name in ("grey", "natural", "roa", "roa-gradient", "art-patch")
    with suppress(InvalidInput) if only_grey else pytest.raises(InvalidInput, match="mend"):
        found = attack(model, x, y, THREAT, generator=torch.Generator().manual_seed(0))
        assert not judge(model, x, y, THREAT, found).broken.any()


class Steep(nn.Module):
    """Linear, and the root of 0, whose gradient is NaN: always, or in the first steps alone."""

    def __init__(self, steps: float = torch.inf) -> None:
        super().__init__()
        self.plain, self.left = Plain(SIZE[0] * SIZE[1]), steps

    def forward(self, x):
        steep = self.left > 0
        self.left -= x.requires_grad
        return self.plain(x) + ((0 * x).sum(dim=(1, 2, 3))[:, None].sqrt() if steep else 0)


def test_a_gradient_that_is_none_disarms_no_climb():
    """The momentum of the next step knows nothing of it."""
    x, model = images(1, SIZE), Steep(1).eval()
    leaf = x.clone().requires_grad_()
    Steep()(leaf).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.isnan().all()
    y, start = predict(model, x), x[:, :, :2, :2].clone()
    chance = torch.Generator().manual_seed(0)
    search = Search(model, x, y, THREAT, touched_only=False, budget=None, generator=chance)
    climb(search, [[Task((0,), start=start)]], Ascent(3, 0.1, momentum=0.9), batch=4)
    assert model.left == -2
    assert (search.gap < whole_view(as_classifier(model), x, y)(x)[0]).all()


def test_a_gradient_that_is_none_is_nothing_to_train_a_patch_by():
    """Content of numbers, where Adam would have kept the NaN for good."""
    x, model = images(4, SIZE), Steep().eval()
    patch = train_patch(model, x, predict(model, x), THREAT, steps=3, rows=4, generator=torch.Generator())
    assert isinstance(patch, UniversalPatch)
    assert patch.content.isfinite().all()
