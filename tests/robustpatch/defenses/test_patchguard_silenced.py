"""A patch that touches all ablations can silence all of them: robust masking certifies nothing there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustpatch import Columns, PatchThreat, SmoothedClassifier, TopOne
from robustpatch.defenses.patchguard import PatchGuard
from robustpatch.voting.scored import SummedScores


class Overflowing(nn.Module):
    """Class 0, unless a pixel is bright: then no number."""

    def forward(self, x):
        broken = torch.where(x[:, :1].flatten(1).amax(dim=1) == 1, torch.nan, 0.0)
        return torch.stack([1 + broken, broken], dim=1)


@pytest.mark.parametrize("voting", [TopOne(), SummedScores()])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_a_patch_that_touches_all_ablations_is_not_certified(voting, threshold):
    """Of four bands of two columns a patch of three touches all; one of a single column does not."""
    inner = SmoothedClassifier(Overflowing(), Columns(2), num_classes=2, voting=voting).eval()
    model = PatchGuard(window="1x3", threshold=threshold).wrap(inner, num_classes=2).eval()
    x, threat = torch.zeros(1, 1, 2, 4), PatchThreat(1, 3)
    attacked = x.clone()
    attacked[0, 0, 0, :3] = 1.0
    assert [int(model.predict(some)) for some in (x, attacked)] == [0, -1]
    found = model.certify(x, threat)
    assert found.certified.tolist() == [False]
    assert (found.placement_margin < 0).all()
