"""One picture for each image: certificates equal enumeration of the footprints that it allows, in plain loops."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluate import Settings, evaluate
from evaluate.results.metrics import summarise
from evaluate.runs.counterexample import load_counterexample
from robustpatch.ablations.kinds import Columns
from robustpatch.ablations.parse import parse_ablation
from robustpatch.certificates.certificate import NO_PLACE
from robustpatch.certificates.exact import certify_votes
from robustpatch.data.images import load_images
from robustpatch.defenses import parse_defense
from robustpatch.errors import InvalidInput
from robustpatch.storage.store import Store
from robustpatch.threats import AnyOf, Within, WithinMasks, bound, parse_threat, threat_from_dict
from robustpatch.threats.parse import pixels_sha256
from robustpatch.voting.votes import Votes
from tests import oracles
from tests.attacks.toys import Level, Plain, smoothed
from tests.evaluate import small_runs
from tests.evaluate.planted import image_set
from tests.evaluate.test_regions_of_images import Boastful
from tests.robustpatch.threats.test_any_footprint import Pixels, a_shape, an_ablation, lead_after
from tests.robustpatch.threats.test_within_each import touching


def a_dataset(folder: Path, size: tuple[int, int], seed: int, share: float = 0.7) -> dict[str, Pixels]:
    """Two classes of three grey pictures of noise, a mask of each, and the masks' white pixels by CLASS/NAME."""
    chance, white = np.random.default_rng(seed), dict[str, Pixels]()
    for kind in ("dark", "light"):
        for name in ("a", "b", "c"):
            place = Path(kind) / f"{name}.png"
            allowed = chance.random(size) < share
            for part, values in (("data", chance.integers(100, 156, size)), ("masks", 255 * allowed)):
                (folder / part / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values.astype(np.uint8)).save(folder / part / place)
            white[place.as_posix()] = frozenset((int(r), int(c)) for r, c in np.argwhere(allowed))
    return white


def load(folder: Path):
    return load_images("folder", folder / "data", channels=1)


@pytest.mark.parametrize("seed", range(6))
def test_every_allowed_footprint_and_every_vote(seed, tmp_path):
    """Of each image by its own picture, in any order and number of images."""
    rng = random.Random(seed)
    size, classes = (rng.randint(2, 6), rng.randint(2, 6)), rng.randint(2, 4)
    white, images = a_dataset(tmp_path, size, seed, rng.choice([0.5, 0.8])), load(tmp_path)
    text = an_ablation(rng, *size)
    ablation, (patch, family) = parse_ablation(text), a_shape(rng, *size)
    threat = bound(WithinMasks(patch, str(tmp_path / "masks")), images)
    order = rng.sample(range(6), 4)
    x, names = images.batch(order)[0], [images.file_names(6)[i] for i in order]
    cast = torch.rand(4, ablation.count(*size), classes, generator=torch.Generator().manual_seed(seed)) < 0.6
    found = certify_votes(Votes(cast, torch.zeros_like(cast)), ablation, threat, size, x=x)
    sets = touching(family, oracles.kept(text, *size))
    for i, name in enumerate(names):
        own, near = cast[i].int().tolist(), torch.zeros_like(cast[i]).tolist()
        leads = [
            lead_after(own, touched, near) if at <= white[name] else None
            for touched, at in zip(sets, family, strict=True)
        ]
        alone = lead_after(own, frozenset(), near)
        assert int(found.margin[i]) == min([alone, *(one for one in leads if one is not None)])
        assert found.placement_margin[i].tolist() == [NO_PLACE if one is None else one for one in leads]
        there = threat.of_image(x[i])
        assert (there is None) == all(one is None for one in leads)


def test_runs_hold_and_break_within_each_picture(tmp_path):
    """Records, counterexamples and defenses: all of them know an image by its values."""
    white, patch = a_dataset(tmp_path, (4, 8), 5, 0.85), f"2x3 in {tmp_path}/masks/"
    images, settings = load(tmp_path), Settings(4, 4, 300, 0, gallery=1)
    model = smoothed(Level(2), Columns(1), 2)
    threat = bound(parse_threat(patch), images)
    records = evaluate(model, images, patch, small_runs.ATTACKS, settings, tmp_path / "held")
    certificate = model.certify(images.batch(range(4))[0], threat)
    assert [record.certified for record in records] == certificate.certified.tolist()
    assert summarise(records).verdict == "held"
    boastful = Boastful(Level(2), Columns(1), num_classes=2, voting=model.voting).eval()
    evaluate(boastful, images, patch, small_runs.ATTACKS, settings, tmp_path / "broken")
    store = Store.of(tmp_path / "broken")
    examples = [load_counterexample(store.path(name)) for name in store.names("counterexamples", ".safetensors")]
    assert examples
    for example in examples:
        assert isinstance(example.threat, Within)
        changed = {tuple(at) for at in (example.x_adv != example.x).any(dim=0).nonzero().tolist()}
        assert changed <= white[images.file_names(6)[example.index]]
    x = images.batch(range(6))[0]
    for text in ("ibp", "patchcleanser:patch=2x3,masks=2"):
        defended = parse_defense(text).wrap(Plain(32, 2), num_classes=2).eval()
        found = defended.certify(x, threat).certified
        for i, image in enumerate(x):
            own = threat.of_image(image) or threat.everywhere
            assert bool(found[i]) == bool(defended.certify(image[None], own).certified[0])
    Image.new("L", (8, 4), 255).save(tmp_path / "masks/dark/a.png")
    with pytest.raises(InvalidInput, match="other threat_sha256"):
        evaluate(model, images, patch, small_runs.ATTACKS, settings, tmp_path / "held")


def test_what_cannot_be_known_is_refused_by_name(tmp_path):
    a_dataset(tmp_path, (4, 4), 0)
    images, masks = load(tmp_path), tmp_path / "masks"
    threat = parse_threat(f"2x2 in {masks}/")
    x = images.batch(range(6))[0]
    with pytest.raises(InvalidInput, match="nobody says which image is which"):
        threat.of_image(x[0])
    with pytest.raises(InvalidInput, match="none of the dataset's"):
        bound(threat, images, 2).of_image(x[5])
    with pytest.raises(InvalidInput, match="have no names; use --dataset folder"):
        bound(threat, image_set(x, torch.zeros(6).long(), 2))
    with pytest.raises(InvalidInput, match="which is not read here"):
        parse_threat(f"2x2 in {masks}/", files=False)
    Image.new("L", (5, 4)).save(masks / "dark" / "b.png")
    with pytest.raises(InvalidInput, match=r"dark/b.png' is 4x5 pixels, and the images are 4x4"):
        bound(threat, images)
    Image.new("L", (4, 4), 100).save(masks / "dark" / "b.png")
    with pytest.raises(InvalidInput, match=r"dark/b.png' is grey"):
        bound(threat, images)
    (masks / "dark" / "b.png").unlink()
    with pytest.raises(InvalidInput, match=r"no picture '.*dark/b.png' for image 2"):
        bound(threat, images)
    bound(threat, images, 2)  # the first of each class
    Image.new("L", (4, 4), 255).save(masks / "dark" / "b.png")
    (tmp_path / "data" / "dark" / "b.png").write_bytes((tmp_path / "data" / "dark" / "a.png").read_bytes())
    with pytest.raises(InvalidInput, match=r"images dark/a.png and dark/b.png are the same, and their pictures"):
        bound(threat, load(tmp_path))


def test_texts_and_dicts(tmp_path):
    a_dataset(tmp_path, (4, 4), 0)
    images, folder = load(tmp_path), tmp_path / "masks"
    for text in (f"2x2 in {folder}", f"2*disc:3 in {folder}/", f"1x3@0,90 in {folder}"):
        threat = bound(parse_threat(text), images)
        assert threat.varies
        assert bound(threat, images) == threat == threat_from_dict(threat.to_dict())
        assert bound(parse_threat(str(threat)), images) == threat
        assert threat.on(4, 4) == threat
        assert isinstance(threat, AnyOf) == ("@" in text)
        before = pixels_sha256(threat)
        Image.new("L", (4, 4), 255 * (before is not None)).save(folder / "light" / "c.png")
        other = bound(parse_threat(text), images)
        assert other != threat
        assert pixels_sha256(other) != before
        (folder / "light" / "c.png").unlink()
        Image.new("L", (4, 4)).save(folder / "light" / "c.png")
