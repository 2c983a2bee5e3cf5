"""Networks as people bring them: flattened by `view`, of one or four channels, in bfloat16, asked about no image."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from evaluate.model.load import check_answers
from robustpatch import Columns, wrap
from robustpatch.data.images import load_images
from robustpatch.defenses import parse_defense
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from tests import toys


class Viewed(nn.Module):
    """Flattens as most networks that are written by hand do."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.a, self.out = nn.Conv2d(channels, 4, 3), nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        assert len(x), "called with no image"
        x = torch.relu(self.a(x))
        return self.out(x.view(x.size(0), -1))


def small(channels: int) -> nn.Module:
    return toys.seeded(
        lambda: nn.Sequential(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    )


def test_a_network_that_flattens_by_view_is_wrapped():
    """In the order of memory that it needs; any other in the faster one."""
    x = toys.images(2, 3, (8, 8))
    model = wrap(toys.seeded(Viewed), Columns(4), image_size=(8, 8))
    assert model.certify(x, PatchThreat(1, 1)).prediction.shape == (2,)
    fast = wrap(small(3), Columns(4), image_size=(8, 8))
    weights = [one for one in fast.base.parameters() if one.ndim == 4]
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in weights)


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_four_channel_networks(channels):
    """Their first convolution says how many channels a mean of nothing has."""
    model = wrap(small(channels), Columns(4), image_size=(8, 8), in_channels=channels)
    assert model.predict(toys.images(2, channels, (8, 8))).shape == (2,)


def test_a_mean_of_other_channels_than_the_network_reads():
    """The remedy is mean and std, not the images' size."""
    with pytest.raises(InvalidInput, match=r"mean and std have 3 values.*reads 1 channels; give a mean and a std of 1"):
        wrap(small(1), Columns(4), image_size=(8, 8), in_channels=1, mean=[0.5] * 3, std=[0.5] * 3)


def test_a_module_in_bfloat16_is_asked_in_bfloat16():
    """As by the attacks and the judge."""
    images = load_images("mnist-sample")
    net = toys.seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10))).to(torch.bfloat16)
    check_answers("net", net, images, "cpu")


def test_patchcleanser_asks_about_images_alone():
    """Where no mask is open, its network is not called: with no image, many networks fail."""
    model = parse_defense("patchcleanser").wrap(toys.seeded(Viewed), num_classes=3).eval()
    none = torch.zeros(0, dtype=torch.long)
    assert model.logits(toys.images(1, 3, (8, 8)), none, none).shape == (0, 3)


def test_a_notebooks_backend_is_none_of_ours():
    """MPLBACKEND of another environment is left alone, and no reason to fail."""
    code = "from evaluate.results import drawing as d; d.load_matplotlib(); import matplotlib.figure"
    backend = "module://matplotlib_inline.no_such_backend"
    told = {**os.environ, "MPLBACKEND": backend}
    done = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
