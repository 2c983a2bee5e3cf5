"""Every attack on patches of every shape: what it changes lies under the footprints."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import nn

from attacks.base import judge
from attacks.registry import parse_attacks
from robustpatch.ablations.kinds import Blocks, Columns, Rows
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.defenses import parse_defense
from robustpatch.errors import InvalidInput
from robustpatch.threats import (
    Cross,
    Disc,
    Footprints,
    Mask,
    Patches,
    PatchThreat,
    Several,
    Within,
    parse_threat,
    rotated,
)
from tests import toys
from tests.attacks.toys import Plain

LOWER = torch.zeros(6, 8, dtype=torch.bool)
LOWER[2:, 1:7] = True
SHAPES: list[Patches] = [
    Disc(4),
    Cross(5, 1),
    rotated(PatchThreat(2, 5), 45.0),
    Within.of(Disc(3), LOWER),
    Within.of(PatchThreat(2, 2, 2), LOWER),
    Footprints.of(torch.rand(9, 6, 8, generator=torch.Generator().manual_seed(0)) < 0.2),
    Disc(3, 2),
    Several([Disc(3), PatchThreat(1, 2)]),
    Several([Within.of(PatchThreat(2, 2), LOWER), Cross(3, 1)]),
]
NAMES = "pgd,lavan,roa,roa-gradient,universal,sparse-rs,noise,grey,natural,quick"
BUDGETS = {"blocks": 300}  # 120 elsewhere: so much that every attack tries a patch


def models() -> dict[str, torch.nn.Module]:
    smoothed = toys.smoothed(toys.strip(Columns(2)), Columns(2))
    masks = parse_defense("patchcleanser:patch=5x6,masks=2x2")
    return {
        "columns": smoothed,
        "blocks": toys.smoothed(toys.conv_block(Blocks(3)), Blocks(3)),
        "patchguard": parse_defense("patchguard:window=6x6").wrap(smoothed, num_classes=toys.CLASSES).eval(),
        "patchcleanser": masks.wrap(Plain(48, toys.CLASSES), num_classes=toys.CLASSES).eval(),
        "undefended": Plain(48, toys.CLASSES).eval(),
    }


@pytest.mark.parametrize("threat", SHAPES, ids=str)
def test_every_attack_keeps_to_the_footprint(threat):
    """And each finds a patch that shows, on every kind of classifier."""
    x = toys.images(2)
    for kind, model in models().items():
        y = as_classifier(model).predict(x)
        budget = BUDGETS.get(kind, 120)
        for attack in parse_attacks(NAMES, budget=budget):
            attack = attack.unpruned(budget)  # where the certificate closes every place, nothing would be tried
            found = attack(model, x, y, threat, generator=torch.Generator().manual_seed(0))
            outcome = judge(model, x, y, threat, found)
            assert outcome.contained.all(), (kind, attack.name)
            assert outcome.in_range.all(), (kind, attack.name)
            assert (found.x_adv != x).flatten(1).any(dim=1).all(), (kind, attack.name)


def test_certified_images_survive_and_others_fall_to_the_search():
    """Searched at every place of two pixels with a gap: no certified image is broken, and others are."""
    model = toys.smoothed(toys.strip(Rows(1)), Rows(1))
    x, threat = toys.images(24) / 4, Mask.of(torch.tensor([[True, False, True]]))
    certificate = model.certify(x, threat)
    (attack,) = parse_attacks("exhaustive", steps=4)
    found = attack.unpruned(4_000)(model, x, certificate.prediction, threat, generator=torch.Generator())
    broken = judge(model, x, certificate.prediction, threat, found).broken
    assert not (broken & certificate.certified).any()
    assert bool(broken.any())
    assert bool(certificate.certified.any())


def test_patches_of_different_shapes_are_certified_where_they_can_be_and_refused_by_name():
    """By votes; by PatchCleanser with a mask for each, made for the largest; by nothing else."""
    both, x = Several([Disc(3), PatchThreat(2, 2)]), toys.images(2)
    for kind in ("patchguard", "patchcleanser"):  # its masks are made for one patch
        with pytest.raises(InvalidInput, match=r"masks one window|do not hide"):
            models()[kind].certify(x, both)  # type: ignore[operator]
    ibp = parse_defense("ibp").wrap(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), num_classes=3).eval()
    with pytest.raises(InvalidInput, match="different shapes"):
        ibp.certify(x, both)  # type: ignore[operator]


def test_a_mask_of_a_picture_is_a_threat_like_any_other(tmp_path):
    """ "mask:FILE" and "SHAPE in FILE" read black and white; grey is refused by its place."""
    picture = Image.new("L", (8, 6))
    for at in ((1, 1), (2, 1), (2, 2)):
        picture.putpixel(at, 255)
    picture.save(tmp_path / "l.png")
    threat = parse_threat(f"mask:{tmp_path}/l.png")
    assert threat == Mask.of(torch.tensor([[True, True], [False, True]]))
    assert str(threat) == f"mask:{tmp_path}/l.png"
    inside = parse_threat(f"1x1 in {tmp_path}/l.png", (6, 8))
    assert inside.threats[0].placements(6, 8).tolist() == [[1, 1], [1, 2], [2, 2]]
    picture.putpixel((5, 4), 128)
    picture.save(tmp_path / "grey.png")
    with pytest.raises(InvalidInput, match=r"grey \(128\) at row 4, column 5"):
        parse_threat(f"mask:{tmp_path}/grey.png")
