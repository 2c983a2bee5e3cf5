"""A classifier of ours whose methods a user replaced: searches take its own answers, or refuse it at the border."""

from __future__ import annotations

import pytest
import torch

from attacks import PatchPGD
from attacks.surfaces.base import Attacked, surface_of
from robustpatch import Columns, InvalidInput, PatchThreat, SmoothedClassifier, TopOne
from robustpatch.defenses.patchguard import PatchGuard
from tests.attacks.toys import Level

ONE, X = PatchThreat(1, 1), torch.rand(2, 1, 4, 6, generator=torch.Generator().manual_seed(0))
Y = torch.zeros(2, dtype=torch.long)


def smoothed(kind: type = SmoothedClassifier, base: torch.nn.Module | None = None) -> SmoothedClassifier:
    return kind(base or Level(2), Columns(1), num_classes=2, voting=TopOne(1e-6)).eval()


def opposite(model, x):
    """Never the class with the most votes."""
    return 1 - SmoothedClassifier.predict(model, x)


class Opposite(SmoothedClassifier):
    predict = opposite


def replaced() -> SmoothedClassifier:
    model = smoothed()
    model.predict = lambda x: opposite(model, x)
    return model


def masked():
    inner = smoothed()
    guard = PatchGuard(window="1x1").wrap(inner, num_classes=2).eval()
    guard.predict = lambda x: opposite(inner, x)
    return guard


@pytest.mark.parametrize("make", [lambda: smoothed(Opposite), replaced, masked], ids=["subclass", "object", "masked"])
def test_clean_predictions_are_those_of_predict(make):
    """Not what the votes say: a search that takes those believes that images are broken which are not."""
    model = make()
    assert torch.equal(surface_of(model, Attacked(X, Y, ONE), True).prediction, model.predict(X))


class Silent(torch.nn.Module):
    def forward(self, x):
        return torch.full((len(x), 2), torch.nan)


def test_an_image_without_a_vote_is_abstained_from():
    model = smoothed(base=Silent())
    assert surface_of(model, Attacked(X, Y, ONE), True).prediction.tolist() == model.predict(X).tolist() == [-1, -1]


@pytest.mark.parametrize("name", ["scores", "votes"])
def test_scores_and_votes_that_no_attack_reads_are_refused(name):
    """Of a subclass and of the object itself: attacks climb its logits, `predict` would follow others."""
    own = getattr(SmoothedClassifier, name)
    models = [smoothed(type("Own", (SmoothedClassifier,), {name: lambda self, *given: own(self, *given)})), smoothed()]
    setattr(models[1], name, lambda *given: own(models[1], *given))
    for model in models:
        with pytest.raises(InvalidInput, match=rf"overrides {name} of SmoothedClassifier.*override logits"):
            PatchPGD(steps=1, restarts=1)(model, X, Y, ONE, generator=torch.Generator())
