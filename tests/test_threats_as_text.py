"""Whatever takes a threat takes its text: "5x5" is `parse_threat("5x5")`, on images of the size at hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from attacks import PatchPGD, Undefended, judge, quick, train_and_transfer, train_patch
from robustpatch import InvalidInput, RandomizedClassifier, Sampling, certify_top_k, certify_votes, parse_threat
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.defenses import parse_defense
from tests import toys

SHARE = "9%"  # needs the size of the images: 3x3 of 6x8
THREAT = parse_threat(SHARE, toys.SIZE)
X = toys.images(2)


class Foreign(nn.Module):
    """A certifier that knows threats, no texts."""

    def forward(self, x):
        return x.flatten(1)[:, : toys.CLASSES]

    def predict(self, x):
        return self(x).argmax(dim=1)

    def certify(self, x, threat):
        assert threat.height == 3
        return toys.smoothed().certify(x, threat)


@pytest.mark.parametrize("defense", ["none", "sampled", "foreign", "patchguard", "patchcleanser", "minority-reports"])
def test_certify(defense):
    if defense in ("patchcleanser", "minority-reports"):
        model = parse_defense(defense).wrap(toys.linear(channels=1), num_classes=toys.CLASSES).eval()
    elif defense == "foreign":
        model = as_classifier(Foreign().eval())
    else:
        model = toys.smoothed()
    if defense == "sampled":
        model = RandomizedClassifier(
            model.base, model.ablation, num_classes=toys.CLASSES, sampling=Sampling(10, 40, 40)
        ).eval()
    if defense == "patchguard":
        model = parse_defense("patchguard:window=3x3").wrap(model, num_classes=toys.CLASSES).eval()
    found, expected = model.certify(X, SHARE), model.certify(X, THREAT)
    assert found.threat == expected.threat == THREAT
    assert found.certified.tolist() == expected.certified.tolist()


def test_votes():
    model, y = toys.smoothed(), torch.tensor([0, 1])
    votes = model.votes(X)
    for text, threat in ((SHARE, THREAT), ("2x3,1x8", parse_threat("2x3,1x8"))):
        found = certify_votes(votes, model.ablation, text, toys.SIZE)
        assert found.margin.tolist() == certify_votes(votes, model.ablation, threat, toys.SIZE).margin.tolist()
    found = certify_top_k(votes, y, 2, model.ablation, SHARE, toys.SIZE)
    assert found.certified.tolist() == model.certify_top_k(X, y, SHARE, 2).certified.tolist()


def test_attacks_and_their_judge():
    """In one line each, without a generator, and the same every time."""
    model, y = toys.smoothed(), torch.tensor([0, 1])
    bare = parse_defense("patchcleanser").wrap(toys.linear(channels=1), num_classes=toys.CLASSES).eval()
    for attack, target in ((PatchPGD(steps=2, restarts=1), model), (Undefended(PatchPGD(steps=2, restarts=1)), bare)):
        found, again = attack(target, X, y, SHARE), attack(target, X, y, THREAT)
        assert torch.equal(found.x_adv, again.x_adv)
        assert judge(target, X, y, SHARE, found).broken.tolist() == judge(target, X, y, THREAT, again).broken.tolist()
    proposal = replace(quick(), budget=20)(model, X, y, "1x1")
    with pytest.raises(InvalidInput, match=r"threat is 2x3,1x8, of which an attacker picks one; attack one after"):
        judge(model, X, y, "2x3,1x8", proposal)
    training = {"steps": 1, "rows": 2}
    assert torch.equal(
        train_patch(model, X, y, SHARE, **training).content, train_patch(model, X, y, THREAT, **training).content
    )
    assert train_and_transfer(model, X, y, SHARE, tries=1, **training)[1].prediction.shape == (1, 1)
