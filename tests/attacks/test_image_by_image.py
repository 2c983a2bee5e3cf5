"""Attacks in a region of each image's own: every place is that image's, and the judge looks at the clean image."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from attacks import judge
from attacks.propose import propose
from attacks.registry import parse_attacks, quick
from attacks.universal import train_patch
from robustpatch.ablations.kinds import Blocks, Rows
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.errors import InvalidInput
from robustpatch.threats import Disc, PatchThreat, WithinEach, parse_threat
from tests import toys
from tests.attacks.toys import Plain
from tests.robustpatch.threats.test_within_each import allowed

NAMES = "pgd:1,roa,sparse-rs:20,noise:5,natural:5,exhaustive"
BUDGET = 100


def scenes() -> torch.Tensor:
    """Bright and dark pixels elsewhere on each image; the last one has no dark ones."""
    x = toys.images(4) / 4
    x[0, :, :, :4], x[1, :, 3:], x[2, :, :3], x[3] = 0.9, 0.8, 0.7, 0.6
    return x


def chance() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("kind", ["blocks", "undefended"])
def test_every_attack_stays_on_each_images_pixels(kind):
    """What is changed is allowed, the proposals are those of each image alone, and nothing lies where nothing may."""
    blocks = toys.smoothed(toys.conv_block(Blocks(3)), Blocks(3))
    model = blocks if kind == "blocks" else Plain(48, toys.CLASSES).eval()
    x, threat = scenes(), WithinEach(PatchThreat(2, 2), "off:0.5")
    y = as_classifier(model).predict(x)
    for number, attack in enumerate([*parse_attacks(NAMES, steps=2, budget=BUDGET), quick()]):
        attack = replace(attack, budget=BUDGET).unpruned(BUDGET)
        run = attack if number % 2 else partial(propose, attack)
        found = run(model, x, y, threat, generator=chance())
        outcome = judge(model, x, y, threat, found)
        assert outcome.contained.all(), attack.name
        for i in range(3):
            changed = {tuple(at) for at in (found.x_adv[i] != x[i]).any(dim=0).nonzero().tolist()}
            assert changed, attack.name
            assert changed <= allowed(x[i], "off", 0.5), attack.name
        if attack.name != "natural":  # contents of the other images of a batch
            alone = attack(model, x[1:2], y[1:2], threat.of_image(x[1]), generator=chance())
            assert torch.equal(alone.x_adv[0], found.x_adv[1]), attack.name
        assert torch.equal(found.x_adv[3], x[3])
        assert found.evaluations[3] == found.visited[3] == 0
        assert not outcome.broken[3]


def test_the_judge_knows_the_places_of_the_clean_image():
    """A patch beside the region, across its border, or on an image without a place does not count."""
    model, x, threat = Plain(48, toys.CLASSES).eval(), scenes(), WithinEach(Disc(2), "off:0.5")
    y = as_classifier(model).predict(x)
    found = parse_attacks("pgd")[0](model, x, y, threat, generator=chance())
    bright = torch.tensor([[0, 0], [4, 0], [0, 0], [0, 0]])[:, None]
    across = torch.tensor([[0, 3], [2, 0], [2, 0], [4, 6]])[:, None]
    for corners in (bright, across):
        x_adv = x.clone()
        for i, (row, column) in enumerate(corners[:, 0].tolist()):
            x_adv[i, :, row : row + 2, column : column + 2] = 0.3
        outcome = judge(model, x, y, threat, replace(found, x_adv=x_adv, corners=corners))
        assert not outcome.contained.any()
        assert not outcome.broken.any()
        assert judge(model, x, y, threat.everywhere, replace(found, x_adv=x_adv, corners=corners)).contained.all()


def test_the_search_finds_what_a_region_leaves():
    """No certified image falls, and of the others some: at places that are allowed there."""
    model = toys.smoothed(toys.strip(Rows(1)), Rows(1))
    x, threat = toys.images(12) / 2, parse_threat("1x2 in off:0.25")
    certificate = model.certify(x, threat)
    (attack,) = parse_attacks("exhaustive", steps=2)
    found = attack.unpruned(400)(model, x, certificate.prediction, threat, generator=chance())
    broken = judge(model, x, certificate.prediction, threat, found).broken
    assert certificate.certified.any()
    assert broken.any()
    assert not (broken & certificate.certified).any()


def test_a_universal_patch_is_of_no_image():
    model, x, threat = Plain(48, toys.CLASSES).eval(), scenes(), WithinEach(Disc(2), "off:0.5")
    (attack,) = parse_attacks("universal")
    with pytest.raises(InvalidInput, match="a universal patch is trained on all of them alike"):
        attack(model, x, torch.zeros(4, dtype=torch.long), threat, generator=chance())
    with pytest.raises(InvalidInput, match="ask image by image"):
        train_patch(model, x, torch.zeros(4, dtype=torch.long), threat, generator=chance())
