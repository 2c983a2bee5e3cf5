"""Certificates of threats of any shape equal enumeration of every footprint and every vote, in plain loops."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.parse import parse_ablation
from robustpatch.ablations.shapes import ShiftedTouched
from robustpatch.certificates.exact import certify_votes
from robustpatch.certificates.top_k import certify_top_k
from robustpatch.errors import InvalidInput
from robustpatch.proof import verifier as proof
from robustpatch.threats import (
    AnyOf,
    Cross,
    Disc,
    Footprints,
    Mask,
    Patches,
    PatchThreat,
    Polygon,
    Threat,
    Within,
    rotated,
    threat_from_dict,
)
from robustpatch.threats.parse import together
from robustpatch.voting.votes import Votes
from tests import oracles

Pixels = frozenset[tuple[int, int]]
Family = list[Pixels]  # where one patch may be


def moved(shape: Pixels, height: int, width: int) -> Family:
    """All places of a set of pixels whose least row and column are 0, inside the image, row by row."""
    found = []
    for down, across in product(range(height), range(width)):
        at = frozenset((r + down, c + across) for r, c in shape)
        if max(r for r, _ in at) < height and max(c for _, c in at) < width:
            found.append(at)
    return found


def disc(d: int) -> Pixels:
    """Centres no farther than d/2 from the middle, in halves of pixels: whole numbers."""
    return frozenset(
        (r, c) for r, c in product(range(d), repeat=2) if (2 * r + 1 - d) ** 2 + (2 * c + 1 - d) ** 2 <= d * d
    )


def cross(length: int, thickness: int) -> Pixels:
    edge = (length - thickness) // 2
    bar = range(edge, edge + thickness)
    return frozenset((r, c) for r, c in product(range(length), repeat=2) if r in bar or c in bar)


def turned(shape: Pixels) -> Pixels:
    """By a quarter, counterclockwise: (r, c) goes to (w - 1 - c, r)."""
    last = max(c for _, c in shape)
    return frozenset((last - c, r) for r, c in shape)


def a_shape(rng: random.Random, height: int, width: int) -> tuple[Patches, Family]:
    """A shape that fits, and where it may be by the oracle."""
    side = min(height, width)
    kind = rng.choice(["rectangle", "disc", "cross", "mask", "mask", "turned", "footprints", "polygon"])
    if kind == "rectangle":
        h, w = rng.randint(1, height), rng.randint(1, width)
        return PatchThreat(h, w), moved(frozenset(product(range(h), range(w))), height, width)
    if kind == "disc":
        d = rng.randint(1, side)
        return Disc(d), moved(disc(d), height, width)
    if kind == "cross" and side >= 3:
        length = rng.randint(3, side)
        thickness = length - 2 * rng.randint(1, (length - 1) // 2)
        return Cross(length, thickness), moved(cross(length, thickness), height, width)
    if (
        kind == "polygon" and side >= 2
    ):  # right-angled triangles: pixel (r, c) of those with r + c < m - 1, and the edge
        m = rng.randint(2, side)
        return (
            Polygon.of([(0, 0), (m, 0), (0, m)]),
            moved(frozenset((r, c) for r, c in product(range(m), repeat=2) if r + c + 1 <= m), height, width),
        )
    if kind == "footprints":
        every = list(product(range(height), range(width)))
        chosen = list(
            {frozenset(rng.sample(every, rng.randint(1, min(6, len(every))))) for _ in range(rng.randint(1, 8))}
        )
        masks = torch.zeros(len(chosen), height, width, dtype=torch.bool)
        for mask, some in zip(masks, chosen, strict=True):
            for at in some:
                mask[at] = True
        return Footprints.of(masks), chosen
    h, w = rng.randint(1, side), rng.randint(1, side)
    pixels = torch.rand(h, w, generator=torch.Generator().manual_seed(rng.getrandbits(40))) < rng.choice(
        [0.3, 0.6, 0.9]
    )
    pixels[rng.randrange(h), rng.randrange(w)] = True
    mask = Mask.of(pixels)
    marked = mask.pattern.nonzero().tolist()
    shape: Pixels = frozenset((r, c) for r, c in marked)
    if kind == "turned":
        return rotated(mask, 90.0), moved(turned(shape), height, width)
    return mask, moved(shape, height, width)


def an_alternative(rng: random.Random, height: int, width: int) -> tuple[Patches, list[Family]]:
    """One, two or three patches at the same time, maybe in a region, and the families of each."""
    parts, families = [], []
    for _ in range(min(rng.choice([1, 1, 1, 2, 2, 3]), height * width)):
        patch, family = a_shape(rng, height, width) if not parts or rng.random() < 0.5 else (parts[0], families[0])
        if rng.random() < 0.3 and not isinstance(patch, Within):
            region = torch.rand(height, width, generator=torch.Generator().manual_seed(rng.getrandbits(40))) < 0.8
            inside = [at for at in family if all(bool(region[pixel]) for pixel in at)]
            if inside:
                patch, family = Within.of(patch, region), inside
        parts.append(patch)
        families.append(family)
    return together(parts), families


def a_threat(rng: random.Random, height: int, width: int) -> tuple[Threat, list[tuple[Patches, list[Family]]]]:
    alternatives = [an_alternative(rng, height, width) for _ in range(rng.choice([1, 1, 1, 2]))]
    return AnyOf([threat for threat, _ in alternatives]), alternatives


def an_ablation(rng: random.Random, height: int, width: int) -> str:
    side = min(height, width)
    stride = "" if rng.random() < 0.6 else f"/{rng.randint(2, side)}" if side >= 2 else ""
    choices = [f"columns:{rng.randint(1, width)}", f"rows:{rng.randint(1, height)}", f"blocks:{rng.randint(1, side)}"]
    text = rng.choice(choices)
    if stride and int(stride[1:]) <= side:
        text += stride
    if rng.random() < 0.15:
        text += f"+rows:{rng.randint(1, height)}"
    if rng.random() < 0.15:
        text = f"2*grid-blocks:{max(1, side // 2)}" if height * width > 3 and side >= 2 else text
    return text


def check_case(seed: int, path: Path) -> None:
    """One random case: touched sets, margins, the map, certified or not, top-1, the proof and the dict form."""
    rng = random.Random(seed)
    height, width, classes = rng.randint(1, 7), rng.randint(1, 7), rng.randint(2, 4)
    text = an_ablation(rng, height, width)
    try:
        ablation = parse_ablation(text)
        n = ablation.count(height, width)
    except InvalidInput:
        return  # more cells to keep than there are
    if n > 60:
        return
    threat, alternatives = a_threat(rng, height, width)
    assert threat_from_dict(threat.to_dict()) == threat
    kept = oracles.kept(text, height, width)
    favourite = torch.where(torch.rand(n) < rng.random(), rng.randrange(classes), torch.randint(classes, (n,)))
    cast = torch.nn.functional.one_hot(favourite, classes).bool()
    if rng.random() < 0.3:
        cast |= torch.rand(n, classes) < 0.2  # a threshold's votes: several classes, or none
    close = torch.rand(n, classes) < rng.choice([0.0, 0.0, 0.1])
    found = certify_votes(Votes(cast[None], close[None]), ablation, threat, (height, width))
    votes, near = cast.int().tolist(), close.tolist()
    found.save(path)
    written = proof.read(path)
    assert proof.unproved(written) == [], seed
    drawn = proof.masks(written.ablation, height, width)
    worst, exact, places = [], True, []
    for one, families in alternatives:
        touched = [[frozenset(i for i, some in enumerate(kept) if some & at) for at in family] for family in families]
        unions = {frozenset().union(*some) for some in product(*(set(sets) for sets in touched))}
        leads = {union: lead_after(votes, union, near) for union in unions}
        worst.append(min(leads.values()))
        exact &= len(families) == 1
        if len(families) == 1:
            places += [leads[one] for one in touched[0]]
        margin = int(certify_votes(Votes(cast[None], close[None]), ablation, one, (height, width)).margin[0])
        assert margin == worst[-1] if len(families) == 1 else margin <= worst[-1], seed
        listed = next(sets for sets, own in zip(written.threats, threat.threats, strict=True) if own == one)
        touches = proof.touched_sets(drawn, listed)
        assert {frozenset(row.nonzero()[0].tolist()) for row in touches} == unions, seed
        assert proof.worst_margins(written, touches).tolist() == [worst[-1]], seed
    # The verifier tries all unions: the least lead there is, and no more, can be claimed of several patches, too.
    for claim in (min(worst), min(worst) + 1):
        more = replace(written, margin=np.array([claim]), certified=np.array([claim >= 0]))
        assert (proof.unproved(more) == []) == (claim == min(worst)), seed
    alternatives_kept = len(threat.threats) == len(alternatives)
    margin = int(found.margin[0])
    assert margin == min(worst) if exact else margin <= min(worst), seed
    assert bool(found.certified[0]) == (margin >= 0)
    if exact and alternatives_kept:
        assert found.placement_margin[0].tolist() == places, seed
    by_paper = certify_votes(Votes(cast[None], close[None]), ablation, threat, (height, width), method="margin")
    assert int(by_paper.margin[0]) <= margin or not exact, seed
    top = certify_top_k(
        Votes(cast[None], close[None]), found.prediction, 1, ablation, threat, (height, width), capacity=classes
    )
    assert int(top.margin[0]) == margin, seed


def lead_after(votes: list[list[int]], controlled: frozenset[int], close: list[list[bool]]) -> int:
    """The least lead of the clean winner where controlled ablations and close votes are all against it."""
    classes = range(len(votes[0]))
    c = oracles.winner([sum(vote[k] for vote in votes) for k in classes])
    counts = [
        sum(
            (k != c) if n in controlled else (vote[k] and not close[n][k]) if k == c else (vote[k] or close[n][k])
            for n, vote in enumerate(votes)
        )
        for k in classes
    ]
    return oracles.lead(counts, c)


@pytest.mark.parametrize("first", range(0, 160, 40))
def test_every_footprint_and_every_vote(first, tmp_path):
    """160 cases: images up to 7×7, up to 4 classes, shapes, turns, regions, lists, up to three patches."""
    torch.manual_seed(first)
    for seed in range(first, first + 40):
        check_case(seed, tmp_path / "proof.npz")


@pytest.mark.slow
@pytest.mark.timeout(3_600)  # a thousand cases: half a minute of a core, minutes of a busy one
@pytest.mark.parametrize("first", range(1000, 13_000, 1000))
def test_every_footprint_and_every_vote_ten_thousand_times(first, tmp_path):
    """The same, 12,000 cases, of which 10,000 and more are none that are left out."""
    torch.manual_seed(first)
    for seed in range(first, first + 1000):
        check_case(seed, tmp_path / "proof.npz")


@pytest.mark.parametrize("seed", range(40))
def test_moved_shapes_touch_what_the_masks_say(seed):
    """The closed form for windows whose strides divide the image, against the definition, for every stride and wrap."""
    rng = random.Random(seed)
    height, width = rng.choice([4, 6, 8]), rng.choice([4, 6, 8])
    size = rng.randint(1, min(height, width))
    ablation = parse_ablation(f"blocks:{size}/2" if rng.random() < 0.5 else f"blocks:{size}")
    pixels = (
        torch.rand(rng.randint(1, height), rng.randint(1, width), generator=torch.Generator().manual_seed(seed)) < 0.5
    )
    pixels[0, 0] = True
    (places,) = Mask.of(pixels).families(height, width)
    listed = Ablation.touched_by(ablation, places)
    moving = ShiftedTouched(*ablation.axes(height, width), places.pattern)
    values = torch.randint(0, 9, (2, listed.num_ablations, 3), dtype=torch.int32)
    where = torch.arange(len(places))
    for ask in (lambda t: t.member(t.set_of_placement), lambda t: t.sums(values)[:, t.set_of_placement]):
        assert torch.equal(ask(listed), ask(moving))
    assert torch.equal(listed.sizes[listed.set_of_placement], moving.sizes[moving.set_of_placement])
    assert torch.equal(moving.member(moving.set_of_placement[where[:1]])[0], moving.member(torch.tensor(0)))
