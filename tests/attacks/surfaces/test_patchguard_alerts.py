"""Attacks on PatchGuard's alarm: the touched ablations say what all say, and no place is given up that wins."""

from __future__ import annotations

import pytest
import torch

from attacks import NoAlert, PatchPGD, judge
from attacks.surfaces import Attacked
from attacks.surfaces.patchguard_alerts import AlarmSurface
from attacks.surfaces.views import whole_view
from robustpatch.ablations.kinds import Blocks, Columns
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.defenses.patchguard_alerts import AlarmedClassifier, PatchGuardAlerts
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.scored import SummedScores
from tests import toys
from tests.attacks.toys import Level, images, smoothed
from tests.robustpatch.defenses.test_minority_reports import SIZE, under_every_content, unnoticed
from tests.robustpatch.defenses.test_patchguard_alerts import alarmed

THREAT = PatchThreat(1, 1)


def attacked(model: AlarmedClassifier, number: int = 40) -> Attacked:
    x = images(number, SIZE, seed=3)
    y = model.predict(x)
    return Attacked(x[y >= 0], y[y >= 0], THREAT)


def smooth() -> AlarmedClassifier:
    """Around a network with gradients, in one pass."""
    net = toys.one_pass(Columns(2), SIZE, 1, 3)
    with torch.no_grad():
        net.head[-1].weight *= 20
    network = SmoothedClassifier(net, net.ablation, num_classes=3, voting=SummedScores())
    return PatchGuardAlerts(window="1x1", threshold=0.6).wrap(network, num_classes=3).eval()


@pytest.mark.parametrize("ablation", [Columns(2), Blocks(2, 2)], ids=str)
def test_closed_places_are_won_by_no_content(ablation):
    """Held against every content at every place; where all are closed the image is certified."""
    model = alarmed(2, ablation=ablation, threshold=0.8)
    of = attacked(model)
    order = [torch.arange(SIZE[0] * SIZE[1])] * len(of.x)
    found = AlarmSurface(model, of).open_placements(order, 2)
    answered = under_every_content(model, of.x, THREAT)  # two contents of each place
    won = unnoticed(answered, of.y).view(-1, 2, len(of.x)).any(dim=1).T
    for image, open_ in enumerate(found):
        assert set(won[image].nonzero()[:, 0].tolist()) <= set(open_.placement.tolist())
    closed = torch.tensor([len(open_) == 0 for open_ in found])
    assert torch.equal(closed, model.certify(of.x, THREAT).certified)


def test_the_touched_ablations_say_what_all_of_them_say():
    """Objective and answer, at every place with random content; towards a class, too."""
    model = smooth()
    of = attacked(model, 4)
    image, place = (some.flatten() for some in torch.meshgrid(torch.arange(len(of.x)), torch.arange(12), indexing="ij"))
    x = of.x[image].clone()
    x[torch.arange(len(x)), 0, place // SIZE[1], place % SIZE[1]] = torch.rand(len(x))
    touched, whole = AlarmSurface(model, of).view(image, place[:, None]), whole_view(model, x, of.y[image])
    for ours, theirs in ((touched, whole), (touched.towards(1), whole.towards(1))):
        (value, answer), (expected, other) = ours(x), theirs(x)
        assert torch.allclose(value, expected, atol=1e-3)
        assert torch.equal(answer, other)
        assert (answer[value < -1e-3] != of.y[image][value < -1e-3]).all()


def test_patches_are_found():
    """Of images with two bright columns of four one more makes a majority that no window holds half of; of black ones
    it is in vain.
    """
    network = smoothed(Level(), Columns(1), 2)
    model = PatchGuardAlerts(window="1x1", threshold=0.5).wrap(network, num_classes=2).eval()
    x, y = torch.zeros(4, 1, *SIZE), torch.zeros(4, dtype=torch.long)
    x[:2, :, 0, :2] = 0.9
    won = unnoticed(under_every_content(model, x, THREAT), y).any(dim=0)
    proposal = PatchPGD(steps=10, restarts=3)(model, x, NoAlert(y), THREAT, generator=torch.Generator().manual_seed(0))
    broken = judge(model, x, NoAlert(y), THREAT, proposal).broken
    assert broken.tolist() == won.tolist() == [True, True, False, False]
    assert model.certify(x, THREAT).certified.tolist() == [False, False, True, True]
