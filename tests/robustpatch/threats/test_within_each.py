"""A region of each image's own: certificates equal enumeration of each image's allowed footprints, in plain loops."""

from __future__ import annotations

import random
from itertools import product

import pytest
import torch

from robustpatch.ablations.parse import parse_ablation
from robustpatch.certificates.certificate import NO_PLACE
from robustpatch.certificates.exact import certify_votes
from robustpatch.certificates.randomized import Sampling
from robustpatch.classifiers.randomized import RandomizedClassifier
from robustpatch.defenses import parse_defense
from robustpatch.errors import InvalidInput
from robustpatch.proof import verifier as proof
from robustpatch.threats import AnyOf, Disc, PatchThreat, Several, Within, WithinEach, parse_threat, threat_from_dict
from robustpatch.threats.parse import pixels_sha256
from robustpatch.voting.rules import TopOne
from robustpatch.voting.votes import Votes
from tests import oracles, toys
from tests.attacks.toys import Lookup, Plain, smoothed
from tests.robustpatch.threats.test_any_footprint import Family, a_shape, an_ablation, lead_after

CONTENTS = [[[0.0], [0.0], [0.0]], [[1.0], [1.0], [1.0]], [[0.0], [1.0], [0.0]], [[1.0], [0.0], [1.0]]]  # of rows


def allowed(image: torch.Tensor, kind: str, threshold: float) -> set[tuple[int, int]]:
    """The pixels of one image [C,H,W] that the rule allows."""
    values, (_, height, width) = image.tolist(), image.shape
    every = product(range(height), range(width))
    dark = {(r, c) for r, c in every if all(channel[r][c] < threshold for channel in values)}
    return dark if kind == "off" else set(product(range(height), range(width))) - dark


def check_case(seed: int, path) -> None:
    """One random case of three images: places, margins by both methods, the map, and the proof of each image alone."""
    rng = random.Random(seed)
    height, width, classes = rng.randint(1, 6), rng.randint(1, 6), rng.randint(2, 4)
    text = an_ablation(rng, height, width)
    try:
        ablation = parse_ablation(text)
        n = ablation.count(height, width)
    except InvalidInput:
        return
    if n > 40:
        return
    count = rng.choice([1, 1, 2]) if height * width > 1 else 1
    kind, threshold = rng.choice(["on", "off"]), rng.choice([0.25, 0.5, 1.0])
    shapes = [a_shape(rng, height, width) for _ in range(rng.choice([1, 1, 2]))]
    alternatives = [(WithinEach(patch.times(count), f"{kind}:{threshold}"), family) for patch, family in shapes]
    threat = AnyOf([one for one, _ in alternatives])
    assert threat_from_dict(threat.to_dict()) == threat
    x = torch.rand(3, rng.randint(1, 3), height, width)
    x[:2] = torch.where(x[:2] < rng.choice([0.2, 0.5]), 0.5, x[:2] / 4)
    favourite = torch.where(torch.rand(3, n) < rng.random(), rng.randrange(classes), torch.randint(classes, (3, n)))
    cast = torch.nn.functional.one_hot(favourite, classes).bool() | (torch.rand(3, n, classes) < 0.1)
    close = torch.rand(3, n, classes) < rng.choice([0.0, 0.1])
    votes, size = Votes(cast, close), (height, width)
    found = certify_votes(votes, ablation, threat, size, x=x)
    paper = found.by("margin")
    kept = oracles.kept(text, height, width)
    for i in range(3):
        pixels, own, near = allowed(x[i], kind, threshold), cast[i].int().tolist(), close[i].tolist()
        worst, maps, most = [lead_after(own, frozenset(), near)], list[int](), list[int]()
        for _, family in alternatives:
            sets = touching(family, kept)
            inside = [one for one, at in zip(sets, family, strict=True) if at <= pixels]
            unions = [frozenset().union(*some) for some in product(set(inside), repeat=count)]
            worst += [lead_after(own, union, near) for union in unions]
            most += [max((len(union) for union in unions), default=0)]
            maps += [lead_after(own, s, near) if at <= pixels else NO_PLACE for s, at in zip(sets, family, strict=True)]
        assert int(found.margin[i]) == min(worst) if count == 1 else int(found.margin[i]) <= min(worst), seed
        assert bool(found.certified[i]) == (int(found.margin[i]) >= 0), seed
        if count == 1:
            assert int(paper.margin[i]) == worst[0] - 2 * max(most), seed
        assert int(paper.margin[i]) <= int(found.margin[i]) or count > 1, seed
        if count == 1 and len(threat.threats) == len(alternatives):
            assert found.placement_margin[i].tolist() == maps, seed
        there = threat.of_image(x[i])
        assert (there is None) == (not any(at <= pixels for _, family in alternatives for at in family)), seed
        if there is not None:
            alone = certify_votes(votes.of(slice(i, i + 1)), ablation, there, size)
            assert int(alone.margin[0]) == int(found.margin[i]), seed
            alone.save(path)
            assert proof.verify(path) == [], seed


def touching(family: Family, kept: list[set[tuple[int, int]]]) -> list[frozenset[int]]:
    return [frozenset(i for i, some in enumerate(kept) if some & at) for at in family]


@pytest.mark.parametrize("first", range(0, 40, 20))
def test_every_allowed_footprint_and_every_vote(first, tmp_path):
    """Shapes, one or two of them, on images of up to three channels, on or off a threshold."""
    torch.manual_seed(first)
    for seed in range(first, first + 20):
        check_case(seed, tmp_path / "proof.npz")


@pytest.mark.slow
@pytest.mark.timeout(3_600)  # a thousand cases: half a minute of a core, minutes of a busy one
@pytest.mark.parametrize("first", range(1000, 6000, 1000))
def test_every_allowed_footprint_and_every_vote_thousands_of_times(first, tmp_path):
    torch.manual_seed(first)
    for seed in range(first, first + 1000):
        check_case(seed, tmp_path / "proof.npz")


@pytest.mark.parametrize("seed", range(3))
def test_no_content_on_allowed_places_changes_a_certified_prediction(seed):
    """Of every image of a few pixels, every patch of zeros and ones at each allowed place: which are all there are."""
    base, fell = Lookup(seed, 2 * 3 * 4, 3), 0
    model = smoothed(base, parse_ablation("columns:1"), 3, TopOne())
    x = torch.randint(0, 2, (16, 1, 3, 4), generator=torch.Generator().manual_seed(seed)).float()
    threat = parse_threat("2x1 in off:0.5")
    certificate = model.certify(x, threat)
    anywhere = model.certify(x, PatchThreat(2, 1)).certified
    for image, certified in zip(x, certificate.certified.tolist(), strict=True):
        there = threat.of_image(image)
        covered = [] if there is None else there.family(3, 4).footprint(torch.arange(len(there.family(3, 4))))
        worlds = [torch.where(one, torch.tensor(content), image) for one in covered for content in CONTENTS]
        changed = bool(worlds) and bool((model.predict(torch.stack(worlds)) != model.predict(image[None])).any())
        assert not (certified and changed)
        fell += changed
    assert (certificate.certified >= anywhere).all()
    assert certificate.certified.any()
    assert fell


def test_defenses_certify_each_image_in_its_own_region():
    """As each image alone, whose region is known; a randomized one bounds the patch anywhere."""
    x = toys.images(4)
    x[3] = 1
    model = toys.smoothed(toys.strip(parse_ablation("columns:2")), parse_ablation("columns:2"))
    threat = parse_threat("2x2 in off:0.8")
    defended = [
        model,
        parse_defense("patchguard:window=2x2").wrap(model, num_classes=toys.CLASSES).eval(),
        parse_defense("patchcleanser:patch=2x2,masks=2x2").wrap(Plain(48, toys.CLASSES), num_classes=4).eval(),
        parse_defense("ibp").wrap(Plain(48, toys.CLASSES), num_classes=4).eval(),
    ]
    for one in defended:
        found = one.certify(x, threat)
        assert found.threat == threat
        for i, image in enumerate(x[:3]):
            there = threat.of_image(image)
            assert isinstance(there, Within)
            alone = one.certify(image[None], there)
            assert bool(alone.certified[0]) == bool(found.certified[i])
            assert alone.margin is None or torch.equal(alone.margin[0], found.margin[i])
        assert threat.of_image(x[3]) is None
        everywhere = one.certify(x, threat.everywhere)
        assert bool(found.certified[3]) >= bool(everywhere.certified[3])
        assert len(one.certify(x[:0], threat).certified) == 0
    random_ = RandomizedClassifier(model.base, model.ablation, num_classes=4, sampling=Sampling(64, 64)).eval()
    assert torch.equal(random_.certify(x, threat).certified, random_.certify(x, PatchThreat(2, 2)).certified)


def test_whoever_knows_of_no_image_refuses():
    threat, votes = parse_threat("2x2 in off:0.5"), Votes(torch.ones(1, 8, 3).bool(), torch.zeros(1, 8, 3).bool())
    model, x = toys.smoothed(toys.strip(parse_ablation("columns:2")), parse_ablation("columns:2")), toys.images(1)
    with pytest.raises(InvalidInput, match="pass the clean images"):
        certify_votes(votes, model.ablation, threat, toys.SIZE)
    with pytest.raises(InvalidInput, match=r"the top k is certified of all images alike; ask image by image"):
        model.certify_top_k(x, torch.tensor([0]), threat, 2)
    with pytest.raises(InvalidInput, match="a proof file holds one list of them; save image by image"):
        model.certify(x, threat).save("proof.npz")
    with pytest.raises(InvalidInput, match=r"has other places on every image.*threat.of_image\(image\)"):
        model.largest_certified(x, lambda n: WithinEach(PatchThreat(n, n), "off:0.5"))
    with pytest.raises(InvalidInput, match="only patches of one shape"):
        Several([Disc(3), WithinEach(PatchThreat(1, 1), "on:0.1")])
    for rule in ("off:0", "off:1.5", "beside:0.5", "off"):
        with pytest.raises(InvalidInput, match=r"give off:0.5 \(where the image is darker"):
            WithinEach(Disc(3), rule)
    with pytest.raises(InvalidInput, match="give one shape"):
        WithinEach(WithinEach(Disc(3), "on:0.5"), "off:0.5")


@pytest.mark.parametrize(
    "text", ["5x5 in off:0.5", "2*disc:3 in on:0.25", "3x8@0,90 in off:1", "mask:2x2/8A in on:0.5"]
)
def test_texts_and_dicts(text):
    threat = parse_threat(text)
    assert threat.varies
    assert parse_threat(str(threat)) == threat == threat_from_dict(threat.to_dict())
    assert threat.on(12, 12) == threat
    assert (pixels_sha256(threat) is not None) == text.startswith("mask")
