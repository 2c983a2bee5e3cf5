"""Minority reports: every content of every patch is answered by the certified class or an alert."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from attacks import NoAlert
from robustpatch.defenses import parse_defense
from robustpatch.defenses.minority_reports import AlertingClassifier, MinorityReports, answers
from robustpatch.defenses.patchcleanser import DoubleMasking, PatchCleanser
from robustpatch.errors import InvalidInput
from robustpatch.threats import parse_threat
from robustpatch.threats.base import Threat
from tests.attacks.toys import Lookup, images

SIZE = (3, 4)
PIXELS = SIZE[0] * SIZE[1]


class Linear(nn.Module):
    """Weights that vary little over the image, so that masks seldom change the answer."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        chance = torch.Generator().manual_seed(seed)
        self.register_buffer(
            "weight", torch.randn(3, 1, generator=chance) + 0.5 * torch.randn(3, PIXELS, generator=chance)
        )

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5) @ self.weight.T


def alerting(seed: int, confidence: float = 0.6, patch: str = "1x2") -> AlertingClassifier:
    """Around a linear network, or (odd seeds) an arbitrary function of the binarised image."""
    network = Lookup(seed, PIXELS, 3, 4.0) if seed % 2 else Linear(seed)
    return AlertingClassifier(
        network, MinorityReports("2x3", patch, "0.5", guard=1e-6, confidence=confidence), num_classes=3
    ).eval()


def under_every_content(model: nn.Module, x: Tensor, threat: Threat) -> Tensor:
    """Int[P,B]: the answers to the images with every black and white content at every place of every patch."""
    attacked = []
    for one in threat.threats:
        footprints = [family.footprint(torch.arange(len(family))) for family in one.families(*SIZE)]
        for masks in product(*footprints):
            inside = torch.stack(masks).any(dim=0)
            for content in product((0.0, 1.0), repeat=int(inside.sum())):
                attacked.append(x.clone())
                attacked[-1][:, 0, inside] = torch.tensor(content)
    return torch.cat([model.predict(some) for some in torch.cat(attacked).split(20_000)]).view(-1, len(x))


def unnoticed(answered: Tensor, y: Tensor) -> Tensor:
    """Bool[P,B]: neither kept nor alerted."""
    criterion = NoAlert(y)
    return torch.stack([criterion.broken(some, None) for some in answered])


@pytest.mark.parametrize(
    ("patch", "threat"), [("1x2", "1x2"), ("2x2", "1x2"), ("2x2", "2x2"), ("1x2", "1x1,1x2"), ("2*1x1", "2*1x1")]
)
@pytest.mark.parametrize("seed", [2, 3])
def test_every_content_is_answered_by_the_class_or_an_alert(patch, threat, seed):
    """The oracle: all contents, all places; and both outcomes occur, kept and alerted."""
    model, x, threat = alerting(seed, patch=patch), images(30, SIZE, seed=seed), parse_threat(threat, SIZE)
    found = model.certify(x, threat)
    assert found.outcome == "recovers or alerts"
    assert torch.equal(found.prediction, model.predict(x))
    assert not (found.certified & (found.prediction < 0)).any()
    answered = under_every_content(model, x, threat)
    assert not (unnoticed(answered, found.prediction) & found.certified).any()


def test_what_is_certified_recovers_and_alerts():
    """Of linear networks some images are certified, of which some patches are alerted and others change nothing."""
    model, x, threat = alerting(2), images(60, SIZE, seed=2), parse_threat("1x2", SIZE)
    found = model.certify(x, threat)
    answered = under_every_content(model, x, threat)
    certified, open_ = found.certified, ~found.certified & (found.prediction >= 0)
    assert 0 < int(certified.sum()) < len(x)
    assert (answered[:, certified] < 0).any()
    assert (answered[:, certified] == found.prediction[certified]).any()
    assert unnoticed(answered, found.prediction)[:, open_].any()


def test_confidence_trades_alerts_for_certificates():
    """The surer a class must be to be heard, the fewer alerts on clean images, and the fewer certificates."""
    x, threat = images(200, SIZE, seed=2), parse_threat("1x2", SIZE)
    some = [alerting(2, least) for least in (0.0, 0.6, 0.8)]
    alerts = [int((one.predict(x) < 0).sum()) for one in some]
    assert alerts == sorted(alerts, reverse=True)
    assert alerts[0] > alerts[-1]
    heard = [one.certify(x, threat) for one in some[1:]]
    assert not (heard[1].certified & ~heard[0].certified & (heard[0].prediction >= 0)).any()


def test_a_confidence_exactly_reached_is_not_heard():
    """Neither for an alert nor for a certificate, which takes twice the guard more in log-odds."""
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])  # two views of one image, the second of log-odds 1
    assert answers(logits, 1.0).tolist() == [0]
    assert answers(logits, 0.999).tolist() == [-1]
    model = alerting(2, confidence=float(torch.tensor(2.0).sigmoid()))
    more = logits + torch.tensor([1e-3, 0])
    assert not model.steady(logits, torch.tensor([0]), 1e-6).any()
    assert model.steady(more, torch.tensor([0]), 1e-4)[0].tolist() == [True, False]
    assert not model.steady(more, torch.tensor([0]), 1e-3).any()
    assert not alerting(2, 0.0).steady(torch.tensor([[[1e-3, 0.0]]]), torch.tensor([0]), 1e-3).any()


def test_numbers_that_overflow_are_an_alert():
    """Whatever a patch does to views that show it, none of the others is changed."""
    logits = torch.tensor(
        [[[2.0, 0.0], [torch.nan, 0.0]], [[2.0, 0.0], [torch.inf, torch.inf]], [[2.0, 0.0], [1.0, 0.0]]]
    )
    assert answers(logits, 0.5).tolist() == [-1, -1, 0]


def test_more_is_certified_than_by_two_masks():
    """One mask must agree where two had to; and the answers take k forwards."""
    network, threat, x = Linear(2), parse_threat("1x2", SIZE), images(100, SIZE, seed=2)
    two = PatchCleanser(network, DoubleMasking("2x3", "1x2", "0.5"), num_classes=3).eval().certify(x, threat)
    one = MinorityReports("2x3", "1x2", "0.5", confidence=0.0).wrap(network, num_classes=3).eval()
    found = one.certify(x, threat)
    assert not (two.certified & ~found.certified).any()
    assert int(found.certified.sum()) > int(two.certified.sum())
    assert one.cost(*SIZE) == (6, 6)
    assert torch.equal(one(x).argmax(dim=1)[found.prediction >= 0], found.prediction[found.prediction >= 0])


def test_patches_that_no_mask_hides_are_refused():
    with pytest.raises(InvalidInput, match=r"confidence is 1\.0; give the softmax"):
        parse_defense("minority-reports:confidence=1")
    assert (
        str(parse_defense("minority-reports:patch=1x2,confidence=0.9")) == "minority-reports:patch=1x2,confidence=0.9"
    )
    with pytest.raises(InvalidInput, match="do not hide it everywhere"):
        alerting(2).certify(images(2, SIZE), parse_threat("3x3", SIZE))


def test_training_under_the_worst_of_a_few_masks():
    """No less loss than under one drawn, and a gradient for the weights; the mode of training is left as it was."""
    x, y, losses = images(8, SIZE), torch.arange(8) % 3, []
    for worst in (0, 6):
        defense = MinorityReports("2x3", "1x2", "0.5", worst=worst)
        network = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 3))
        with torch.no_grad():
            network[1].weight.copy_(Linear(2).weight)
        model = defense.wrap(network, num_classes=3).train()
        generator = torch.Generator().manual_seed(0)
        loss = model.training_loss(x, y, parse_threat("1x2", SIZE), generator, 0.0)
        loss.backward()
        assert network.training
        assert network[1].weight.grad.abs().sum() > 0
        losses.append(float(loss.detach()))
    assert losses[1] > losses[0]
