"""What attacks know of minority reports: never a place given up that a patch wins, and a patch found where there is."""

from __future__ import annotations

import pytest
import torch

from attacks import NoAlert, PatchPGD, judge
from attacks.surfaces import Attacked
from attacks.surfaces.minority_reports import MinorityReportsSurface
from robustpatch.threats.rectangle import PatchThreat
from tests.attacks.toys import images
from tests.robustpatch.defenses.test_minority_reports import SIZE, alerting, under_every_content, unnoticed

THREAT = PatchThreat(1, 2)


@pytest.mark.parametrize("seed", range(4))
def test_closed_places_are_won_by_no_content(seed):
    """Held against every content at every place."""
    model, x = alerting(seed), images(40, SIZE, seed=seed)
    y = model.predict(x)
    x, y = x[y >= 0], y[y >= 0]
    open_ = MinorityReportsSurface(model, Attacked(x, y, THREAT)).open
    answered = under_every_content(model, x, THREAT)  # four contents of each place
    won = unnoticed(answered, y).view(-1, 4, len(x)).any(dim=1).T
    assert not (won & ~open_).any()
    assert torch.equal((~open_).all(dim=1), model.certify(x, THREAT).certified)


def test_patches_are_found():
    """Neither kept nor alerted, on most images that black and white win; and never on a certified one."""
    model, x, attack = alerting(2), images(20, SIZE, seed=2), PatchPGD(steps=15, restarts=8)
    y = model.predict(x)
    x, y = x[y >= 0], y[y >= 0]
    won = unnoticed(under_every_content(model, x, THREAT), y).any(dim=0)
    proposal = attack(model, x, NoAlert(y), THREAT, generator=torch.Generator().manual_seed(0))
    broken = judge(model, x, NoAlert(y), THREAT, proposal).broken
    assert not (broken & model.certify(x, THREAT).certified).any()
    assert int((broken & won).sum()) >= 0.7 * int(won.sum()) > 0
