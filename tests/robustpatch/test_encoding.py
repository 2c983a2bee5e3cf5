"""PITFALLS 15 and 20: hidden pixels are told from every colour, and nothing of them remains."""

from __future__ import annotations

import pytest
import torch

from robustpatch.ablations.kinds import Blocks, Columns, Rows
from robustpatch.encoding import ComplementChannels, MaskChannel, encoding_named
from robustpatch.errors import InvalidInput
from tests import toys

ENCODINGS = [ComplementChannels(), MaskChannel()]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("channels", [1, 3])
def test_null_is_no_colour(encoding, channels):
    """A hidden pixel differs from black, white and mean grey, and from every other value in [0, 1]."""
    shades = torch.linspace(0, 1, 101)
    x = shades.expand(1, channels, 1, -1)
    shown = encoding(x, torch.ones(1, 1, 101, dtype=torch.bool))
    hidden = encoding(x, torch.zeros(1, 1, 101, dtype=torch.bool))
    assert shown.shape == (1, encoding.channels(channels), 1, 101)
    assert ((shown - hidden).abs().amax(dim=1) >= 0.5).all()
    assert len(shown.flatten(0, 2).T.unique(dim=0)) == 101  # no two shades look the same either


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("ablation", [Columns(2), Rows(3), Blocks(2, 3)])
def test_nothing_outside_the_kept_pixels_is_encoded(encoding, bad, ablation):
    """NaN, infinities and 1e30 in hidden pixels leave the encoding bitwise equal: selection, not multiplication."""
    masks = ablation.masks(*toys.SIZE)
    x = toys.images(1, 3).expand(len(masks), -1, -1, -1)
    before = encoding(x, masks)
    after = encoding(torch.where(masks[:, None], x, bad), masks)
    assert torch.equal(before, after)
    assert torch.isfinite(after).all()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_kept_pixels_arrive_unchanged(encoding):
    """The first channels are the image where it is kept and zero elsewhere."""
    masks = Columns(3).masks(*toys.SIZE)
    x = toys.images(len(masks), 3)
    encoded = encoding(x, masks)
    assert torch.equal(encoded[:, :3], x * masks[:, None])


def test_encodings_by_name():
    """Checkpoints store names; an unknown one is refused with the known ones."""
    assert [encoding_named(e.name) for e in ENCODINGS] == ENCODINGS
    with pytest.raises(InvalidInput, match="known are complement, mask"):
        encoding_named("grey")
