"""The largest certified of growing patches: all sizes up to it by brute force, whether or not sizes hold each other."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from robustpatch.ablations.parse import parse_ablation
from robustpatch.certificates.exact import certify_votes
from robustpatch.certificates.largest import largest_certified
from robustpatch.errors import InvalidInput
from robustpatch.threats import Mask, PatchThreat, Scaled, Several, discs, parse_growing, parse_threat, squares
from robustpatch.voting.votes import Votes
from tests import oracles, toys
from tests.robustpatch.threats.test_any_footprint import lead_after

RING = Mask.of(torch.tensor([[1, 1, 1], [1, 0, 1]]).bool())
GROWING = {
    "squares": squares,
    "discs": discs,
    "ring": Scaled(RING),
    "two squares": lambda n: PatchThreat(n, n, 2),
    "a square and a disc": lambda n: Several([squares(n), discs(n)]),
    "turned bars": lambda n: parse_threat(f"1x{n}@0,90"),
    "shrinking": lambda n: PatchThreat(max(1, 3 - n), 1),
}


def votes_of(ablation, size: tuple[int, int], images: int = 24) -> Votes:
    """Two classes and a third that nobody votes for, from contested to unanimous; some close."""
    generator, n = torch.Generator().manual_seed(3), ablation.count(*size)
    drawn = torch.rand(images, n, 3, generator=generator)
    share = torch.linspace(0.4, 1, images)[:, None, None] * torch.tensor([0.1, 1.0, 0.0])
    return Votes(drawn < share, torch.rand(images, n, 3, generator=generator) < 0.01)


@pytest.mark.parametrize("name", GROWING)
@pytest.mark.parametrize("text", ["columns:1", "blocks:2", "rows:1"])
@pytest.mark.parametrize("method", ["exact", "margin"])
def test_all_sizes_up_to_it_are_certified_and_the_next_is_not(name, text, method):
    """Size by size equal to `certify_votes`, for shapes of which larger ones hold smaller and for those that do not."""
    size, growing, ablation = (8, 5), GROWING[name], parse_ablation(text)
    votes, sizes = votes_of(ablation, size), []
    for n in range(1, 41):
        try:
            threat = growing(n).on(*size)
        except InvalidInput:
            break
        sizes.append(certify_votes(votes, ablation, threat, size, method=method).certified)
    expected = [([*own, False]).index(False) for own in torch.stack(sizes, dim=1).tolist()]
    assert largest_certified(votes, ablation, size, method, growing).tolist() == expected
    assert len(set(expected)) > 1


def test_discs_against_enumeration():
    """In plain loops over every footprint and rival; a smaller disc that is not certified stops the search."""
    size, text = (7, 7), "blocks:1"
    ablation = parse_ablation(text)
    votes, kept = votes_of(ablation, size, 40), oracles.kept(text, *size)
    disc = {
        d: {(r, c) for r, c in product(range(d), repeat=2) if (2 * r + 1 - d) ** 2 + (2 * c + 1 - d) ** 2 <= d * d}
        for d in range(1, 8)
    }
    expected = []
    for cast, close in zip(votes.cast.int().tolist(), votes.close.tolist(), strict=True):
        for d, shape in disc.items():
            places = product(range(8 - d), repeat=2)
            pixels = [{(r + down, c + across) for r, c in shape} for down, across in places]
            sets = {frozenset(n for n, some in enumerate(kept) if some & at) for at in pixels}
            if min(lead_after(cast, one, close) for one in sets) < 0:
                break
        else:
            d = 8
        expected.append(d - 1)
    assert largest_certified(votes, ablation, size, growing=discs).tolist() == expected
    assert len(set(expected)) > 2


def test_a_disc_need_not_hold_a_smaller_one():
    """disc:3 is a square of nine, and disc:4 lacks its corners: why sizes are tried one by one."""
    (small,), (large,) = (discs(d).families(8, 8) for d in (3, 4))
    inside = small.inside(large.footprint(torch.arange(len(large))))
    assert not bool(inside.any())


def test_a_larger_disc_may_be_certified_where_a_smaller_is_not():
    """Nine votes for the winner in a square, the rival's around it: disc:3 takes all nine, disc:4 at most eight."""
    size, elsewhere = (12, 12), torch.ones(12, 12, dtype=torch.bool)
    elsewhere[3:8, 3:8] = False
    winner, rival = elsewhere.clone(), elsewhere.clone()
    rival[elsewhere] &= torch.arange(119) % 5 > 0
    rival[3:8, 3:8] = True
    rival[4:7, 4:7], winner[4:7, 4:7] = False, True
    cast = torch.stack([winner.flatten(), rival.flatten()], dim=1)[None]
    votes, ablation = Votes(cast, cast & False), parse_ablation("blocks:1")
    certified = [bool(certify_votes(votes, ablation, discs(d), size).certified) for d in (1, 2, 3, 4)]
    assert certified == [True, True, False, True]
    assert largest_certified(votes, ablation, size, growing=discs).tolist() == [2]


@pytest.mark.parametrize(
    ("size", "rows"), [(1, ["#"]), (2, ["##"]), (3, ["###", "#.#"]), (6, ["######", "######", "##..##", "##..##"])]
)
def test_a_scaled_mask(size, rows):
    """Never empty, itself at its own size, and each pixel four at twice that; by the pixels that it covers in part."""
    assert ["".join(".#"[pixel] for pixel in row) for row in Scaled(RING)(size).pattern.int().tolist()] == rows


@pytest.mark.parametrize("size", [2, 4, 5, 7])
def test_a_scaled_mask_covers_the_mask(size):
    """Each pixel of the one that shares area with a marked pixel of the other, by exact fractions."""
    mask = Mask.of(torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1]]).bool())
    found = Scaled(mask)(size).pattern
    assert max(found.shape) == size
    for r, c in product(range(found.shape[0]), range(found.shape[1])):
        shared = [
            mask.pattern[i, j]
            for i, j in product(range(3), range(4))
            if r * 3 < (i + 1) * found.shape[0]
            and i * found.shape[0] < (r + 1) * 3
            and c * 4 < (j + 1) * size
            and j * size < (c + 1) * 4
        ]
        assert bool(found[r, c]) == any(shared)


def test_growing_threats_by_their_text(tmp_path):
    pixels = np.zeros((5, 5), np.uint8)
    pixels[1:3, 1:4] = 255
    pixels[2, 2] = 0
    Image.fromarray(pixels).save(tmp_path / "ring.png")
    assert (parse_growing("Square"), parse_growing("disc")) == (squares, discs)
    assert parse_growing(f"mask:{tmp_path / 'ring.png'}")(3) == RING
    for text in ("triangle", "disc:5", ""):
        with pytest.raises(InvalidInput, match="name square, disc or mask:FILE"):
            parse_growing(text)


def test_by_a_classifier_and_by_its_certificate():
    model = toys.smoothed()
    x = toys.images(4)
    made = model.certify(x, PatchThreat(1, 1))
    assert model.largest_certified(x, discs).tolist() == made.largest_certified(discs).tolist()
    assert model.largest_certified(x).tolist() == model.largest_certified(x, squares).tolist()
    assert made.evidence is not None
    assert made.evidence.largest_certified("margin", discs).shape == (4,)


def test_a_size_that_is_none():
    votes = votes_of(parse_ablation("rows:1"), (6, 7))
    with pytest.raises(InvalidInput, match="larger than the image"):
        largest_certified(votes, parse_ablation("rows:1"), (6, 7), growing=lambda n: PatchThreat(n, 9))
