"""Crops and flips: each image is moved and mirrored on its own, by the generator given."""

from __future__ import annotations

import pytest
import torch

from robustpatch.training.augmentation import augmented
from tests import toys


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("crop", "flip"), [(2, False), (0, True), (3, True)])
def test_each_image_is_one_of_its_own_crops(crop, flip):
    """Values are moved and never mixed; over many images every place and both sides occur."""
    x = toys.images(1, 3, (5, 7)).expand(1500, -1, -1, -1).contiguous()
    before, state = x.clone(), torch.get_rng_state()
    seen = augmented(x, chance(), crop=crop, flip=flip)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    padded = torch.nn.functional.pad(x[0], (crop,) * 4)
    places = [padded[:, i : i + 5, j : j + 7] for i in range(2 * crop + 1) for j in range(2 * crop + 1)]
    places += [place.flip(2) for place in places] if flip else []
    equal = torch.stack([(seen == place).flatten(1).all(dim=1) for place in places])
    assert (equal.sum(dim=0) == 1).all()  # the images of a batch differ from each other
    assert equal.any(dim=1).all()


def test_a_zoom_shows_a_part_of_each_image_at_full_size():
    """On a slope of brightness the range of an image's values is the share of its width that is shown: never below what
    the smallest area of the tallest shape leaves, of the whole width at times, and in the middle of what is shown.
    """
    slope = torch.linspace(0, 1, 40).expand(400, 1, 40, 40).contiguous()
    seen = augmented(slope, chance(), zoom=0.25)
    assert seen.shape == slope.shape
    width = seen.amax(dim=(1, 2, 3)) - seen.amin(dim=(1, 2, 3))
    smallest = (0.25 * 3 / 4) ** 0.5
    assert float(width.min()) > smallest - 2 / 40
    assert float(width.min()) < smallest + 0.1
    assert float(width.max()) > 0.9
    left = seen.amin(dim=(1, 2, 3))
    assert float(left.min()) < 0.05
    assert float(left.max()) > 0.3
    assert (seen.diff(dim=3) >= -1e-6).all()  # still a slope, not mirrored
    assert (seen.std(dim=2) < 1e-5).all()
    assert torch.equal(augmented(slope, chance(), zoom=0.25), seen)


def test_a_turn_moves_the_rim_and_keeps_the_middle():
    """A bright bar through the middle: turned either way by at most the angle, the middle stays, nothing is scaled."""
    bar = torch.zeros(300, 1, 41, 41)
    bar[:, :, :, 20] = 1
    seen = augmented(bar, chance(), turn=30.0)[:, 0]
    assert (seen[:, 20, 20] > 0.9).all()
    tops = seen[:, 2].argmax(dim=1)[seen[:, 2].amax(dim=1) > 0] - 20  # 18 rows above the middle
    assert int(tops.min()) < -5
    assert int(tops.max()) > 5
    assert int(tops.abs().max()) <= 11  # 18 · tan 30° = 10.4
    assert torch.equal(augmented(bar, chance(), turn=30.0)[:, 0], seen)


def test_colours_change_by_at_most_the_share():
    """On images of one grey, brightness alone acts: by a factor within 1 ± share. On images of one colour, saturation
    scales its distance from grey, and contrast too: by a factor within (1 ± share)². Values stay in [0, 1].
    """
    grey = torch.full((500, 3, 4, 4), 0.5)
    seen = augmented(grey, chance(), colour=0.3)
    assert (seen.flatten(1).std(dim=1) < 1e-6).all()
    assert 0.35 - 1e-6 <= float(seen.min()) < 0.37
    assert 0.63 < float(seen.max()) <= 0.65 + 1e-6
    two = torch.full((500, 3, 4, 4), 0.5)
    two[:, 0] += 0.1
    two[:, 1] -= 0.1
    apart = augmented(two, chance(), colour=0.3)
    share = (apart[:, 0] - apart[:, 1]).flatten(1)[:, 0] / (2 * apart.flatten(1).mean(dim=1))
    assert 0.2 * 0.7**2 - 1e-5 < float(share.min()) < 0.12
    assert 0.3 < float(share.max()) < 0.2 * 1.3**2 + 1e-5
    assert len(share.unique()) > 400
    bright = augmented(torch.rand(100, 3, 4, 4, generator=chance(1)), chance(), colour=1.0)
    assert float(bright.min()) >= 0
    assert float(bright.max()) <= 1


def test_the_generator_decides():
    """The same for the same generator, whatever torch's own state; another for another, and for the next call."""
    x = toys.images(8, 1, (6, 6))
    generator = chance()
    first, second = (augmented(x, generator, crop=2, flip=True) for _ in range(2))
    torch.rand(3)
    assert torch.equal(augmented(x, chance(), crop=2, flip=True), first)
    assert not torch.equal(first, second)
    assert not torch.equal(augmented(x, chance(1), crop=2, flip=True), first)


def test_without_options_nothing_is_drawn():
    """Trainings without augmentation draw what they always did."""
    x, generator = toys.images(2), chance()
    assert augmented(x, generator) is x
    assert torch.equal(generator.get_state(), chance().get_state())
