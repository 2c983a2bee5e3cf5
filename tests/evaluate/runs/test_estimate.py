"""What a run will cost is told at once, and costs at most a tenth of it."""

from __future__ import annotations

import pytest
import torch

from attacks import PatchPGD
from evaluate import Settings, evaluate
from evaluate.runs import estimate as module
from evaluate.runs.estimate import estimate
from robustpatch.ablations.kinds import Columns
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Threshold
from tests.evaluate.planted import image_set

SIZE = 24


class Counting(torch.nn.Module):
    """Counts the ablated images that it scores."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 2))
        self.scored = [0]

    def forward(self, x):
        self.scored[0] += len(x)
        return x.mean(dim=(1, 2, 3))[:, None] * self.weight


def scene(number: int):
    x = torch.rand(number, 1, 8, SIZE, generator=torch.Generator().manual_seed(0))
    return image_set(x, torch.ones(number, dtype=torch.long), 2)


@pytest.mark.parametrize(("number", "attacks"), [(10, ()), (10, (PatchPGD(steps=2, restarts=1),)), (400, ())])
def test_an_estimate_costs_a_tenth_of_what_it_estimates(tmp_path, monkeypatch, number, attacks):
    """In ablations scored, where no seconds are free; and speaks before it begins."""
    monkeypatch.setattr(module, "CHEAP", 0.0)
    base, told = Counting(), []
    model = SmoothedClassifier(base, Columns(3), num_classes=2, voting=Threshold(0.3)).eval()
    settings = Settings(number, 50, 300, 0, gallery=0)
    given = (scene(number), PatchThreat(2, 2), attacks, settings)
    evaluate(model, *given, tmp_path)
    whole, base.scored[0] = base.scored[0], 0
    found = estimate(model, *given, on_progress=lambda _, what: told.append((base.scored[0], what)))
    assert base.scored[0] <= whole / 10
    assert told[0] == (0, "timing one image")
    assert found.images == number
    assert found.certifying > 0
    assert (found.attacking > 0) == bool(attacks) == (found.evaluations > 0)
    assert (found.certified is None) == (number == 10)
