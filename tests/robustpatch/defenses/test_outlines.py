"""Masks with the outline of the patch: every footprint inside one of them, and not a pixel that no footprint needs."""

from __future__ import annotations

import random
from io import BytesIO
from itertools import product

import numpy as np
import pytest
import torch

from evaluate.bundle.evidence import evidence_of, packed
from robustpatch.defenses import parse_defense
from robustpatch.defenses.masking import Boxes, Outlines
from robustpatch.defenses.patchcleanser import DoubleMasking, PatchCleanser
from robustpatch.errors import InvalidInput
from robustpatch.proof.bundle import KINDS
from robustpatch.threats import AnyOf, Disc, Within, parse_threat
from tests.attacks.toys import Lookup
from tests.robustpatch.threats.test_any_footprint import Family, Pixels, a_shape

TEXT = "patchcleanser:masks={},patch={},hidden=0.5,guard=1e-06,tight=true"


def pixels_of(masks: Outlines) -> list[Pixels]:
    return [frozenset((r, c) for r, c in mask.nonzero().tolist()) for mask in masks.hidden()]


def are_hidden(family: Family, masks: list[Pixels]) -> bool:
    """The definition, in sets of pixels."""
    return all(any(footprint <= mask for mask in masks) for footprint in family)


def check_case(seed: int) -> int:
    """One random case. Returns how many cuts of one pixel leave some footprint bare."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    height, width = rng.randint(1, 7), rng.randint(1, 7)
    shapes = [a_shape(rng, height, width) for _ in range(rng.choice([1, 1, 2, 3]))]
    if rng.random() < 0.3:
        region = torch.rand(height, width) < 0.8
        allowed = frozenset((r, c) for r, c in region.nonzero().tolist())
        inside = [(patch, [at for at in family if at <= allowed]) for patch, family in shapes]
        shapes = [(Within.of(patch, region), family) for patch, family in inside if family] or shapes
    threat = AnyOf([patch for patch, _ in shapes])
    masks = Outlines.for_threat(threat, (rng.randint(1, 4), rng.randint(1, 4)), (height, width))
    own, every = pixels_of(masks), [at for _, family in shapes for at in family]
    assert are_hidden(every, own), seed
    assert masks.covers(threat), seed
    for mask in own:
        assert mask == frozenset().union(*(at for at in every if at <= mask)), seed
    other, elsewhere = a_shape(rng, height, width)
    assert masks.covers(other) == are_hidden(elsewhere, own), seed
    assert {tuple(some) for some in masks.hiding(other).tolist()} == {
        tuple(at <= mask for mask in own) for at in elsewhere
    }, seed
    number, cut = rng.randrange(len(own)), masks.pixels.clone()
    cut[(number, *rng.choice(sorted(own[number])))] = False
    less = Outlines(cut, masks.image_size, masks.count)
    bare = not are_hidden(every, pixels_of(less))
    assert less.covers(threat) == (not bare), seed
    return bare


def test_every_footprint_lies_inside_a_mask_of_footprints():
    """And of masks less one pixel, exactly those that leave a footprint bare do not cover the threat."""
    assert sum(map(check_case, range(25))) > 8


@pytest.mark.slow
@pytest.mark.timeout(3_600)  # five thousand cases: minutes of a busy machine
def test_every_footprint_lies_inside_a_mask_of_footprints_thousands_of_times():
    assert sum(map(check_case, range(1000, 6000))) > 2000


def test_masks_of_a_disc_lack_the_corners_and_of_a_square_nothing():
    boxes, disc = Boxes.for_patch(Disc(7), (6, 6), (28, 28)), Outlines.for_threat(Disc(7), (6, 6), (28, 28))
    assert boxes.height * boxes.width == 100
    assert disc.hidden().flatten(1).sum(dim=1).max() == 88
    square = parse_threat("5x5").threats[0]
    assert torch.equal(
        Outlines.for_threat(square, (6, 6), (28, 28)).hidden(), Boxes.for_patch(square, (6, 6), (28, 28)).hidden()
    )


def lookup(patch: str, masks: str, size: tuple[int, int], seed: int) -> PatchCleanser:
    """Around an arbitrary function of the image in black and white, which favours one class."""
    defense = parse_defense(TEXT.format(masks, patch))
    assert isinstance(defense, DoubleMasking)
    return PatchCleanser(Lookup(seed, size[0] * size[1], 3, 2.0), defense, num_classes=3).eval()


@pytest.mark.parametrize(
    ("patch", "masks", "size"),
    [
        ("cross:3/1", "1x2", (3, 4)),
        ("polygon:0/0;2/0;0/2,1x3", "1x3", (2, 5)),
        ("2*polygon:0/0;2/0;0/2", "1x3", (2, 4)),
    ],
)
def test_no_content_of_any_footprint_changes_a_certified_prediction(patch, masks, size):
    """Of every image in black and white, all contents at all places: an arbitrary function sees nothing more."""
    threat, certified, fell = parse_threat(patch, size), 0, 0
    bits = (torch.arange(2 ** (size[0] * size[1]))[:, None] >> torch.arange(size[0] * size[1])) & 1
    every = bits.float().view(-1, 1, *size)
    for seed in range(3):
        model = lookup(patch, masks, size, seed)
        answer, sound = model.predict(every), model.certify(every, threat).certified
        for one in threat.threats:
            for places in product(*(family.footprint(torch.arange(len(family))) for family in one.families(*size))):
                kept = ~torch.stack(places).any(dim=0).flatten()
                alike = torch.unique(bits[:, kept], dim=0, return_inverse=True)[1]  # but for the patch
                least = answer.new_full((int(alike.max()) + 1,), 3).scatter_reduce(0, alike, answer, "amin")
                most = torch.zeros_like(least).scatter_reduce(0, alike, answer, "amax")
                changed = (least != most)[alike]
                assert not (changed & sound).any()
                fell += int(changed.sum())
        certified += int(sound.sum())
    assert certified
    assert fell


def test_the_text_keeps_angles_and_old_texts_keep_rectangles():
    defense = parse_defense("patchcleanser:hidden=mask,patch=3x8@0,45,90,tight=true,masks=7")
    assert isinstance(defense, DoubleMasking)
    assert parse_defense(str(defense)) == defense
    assert defense.patch == "3x8@0,45,90"
    assert defense.mask_set(28, 28).covers(parse_threat("3x8@0,45,90"))
    old = parse_defense("patchcleanser:patch=disc:5")
    assert isinstance(old, DoubleMasking)
    assert isinstance(old.mask_set(28, 28), Boxes)
    assert "tight" not in str(old)
    with pytest.raises(InvalidInput, match="tight=true"):
        parse_defense("patchcleanser:patch=3x8@0,45").mask_set(28, 28)


def test_what_is_larger_than_the_outline_is_refused():
    model = lookup("disc:4", "2", (5, 6), 0)
    with pytest.raises(InvalidInput, match="do not hide it everywhere"):
        model.certify(torch.zeros(1, 1, 5, 6), parse_threat("4x4"))


@pytest.mark.parametrize("patch", ["cross:3/1", "2x2"])
def test_proofs_hold_masks_of_any_outline_and_fall_with_a_pixel(patch):
    """A mask without one of its pixels: what it alone hides is not proved any more."""
    x = torch.linspace(0, 1, 9)[:, None, None, None].expand(-1, 1, 4, 5).clone()
    model = lookup(patch, "2", (4, 5), 1)
    kind, content = evidence_of(model, x, parse_threat(patch))
    file, wrong = KINDS[kind][0](content)
    assert kind == "masks"
    assert file.certified.any()
    assert wrong == []
    with np.load(BytesIO(content)) as read:
        arrays = dict(read)
    masks, family = model.defense.mask_set(4, 5), parse_threat(patch).threats[0].families(4, 5)[0]
    fell = 0
    for number, row, column in masks.hidden().nonzero().tolist():
        hidden = masks.hidden().clone()
        hidden[number, row, column] = False
        forged = {**arrays, "hidden": np.packbits(hidden.flatten(1).numpy(), axis=1)}
        bare = not family.inside(hidden).any(dim=1).all()
        assert bool(KINDS[kind][0](packed(forged))[1]) >= bare
        fell += bare
    assert fell
    for name, array in (("hidden", arrays["hidden"][:, :-1]), ("hidden", arrays["hidden"][:0])):
        with pytest.raises(ValueError, match="hidden is"):
            KINDS[kind][0](packed({**arrays, name: array}))
