"""The base class of one-pass networks: one of your own is one method; it is built by name, scored and certified."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustpatch import Blocks, Columns, InvalidInput, PatchThreat, Rows, SmoothedClassifier
from robustpatch.encoding import ComplementChannels
from robustpatch.networks import OnePass, build
from robustpatch.networks.registry import ONE_PASS
from tests import toys


class MeansNet(OnePass):
    """Logits that are linear in the mean of a band: the least that a one-pass network can be."""

    kinds = (Columns, Rows)
    sees = "a network of means sees columns or rows"

    def __init__(self, ablation, *, image_size=(6, 8), num_classes=3, in_channels=1):
        super().__init__(ablation, image_size, in_channels)
        self.linear = nn.Linear(in_channels, num_classes)

    def score_some(self, x: Tensor, index: Tensor) -> Tensor:
        kept = self.ablation.masks(*self.image_size, index)[:, :, None]
        return self.linear(torch.where(kept, x[:, None], 0).flatten(3).sum(dim=3) / kept.flatten(3).sum(dim=3))


@pytest.fixture
def by_name(monkeypatch):
    monkeypatch.setitem(ONE_PASS, "means", MeansNet)
    common = {"image_shape": (1, 6, 8), "num_classes": 3, "encoding": ComplementChannels(), "options": {}}
    return lambda ablation: toys.seeded(lambda: build("means", ablation=ablation, **common))


@pytest.mark.parametrize("ablation", [Columns(2), Rows(3, 2)])
def test_a_network_of_your_own_is_one_method(by_name, ablation):
    """All ablations, [n] for every image alike and [B,n] are one answer; a smoothed classifier certifies with it."""
    net, x = by_name(ablation), toys.images(2)
    n = ablation.count(6, 8)
    every, back = net.score_all(x), torch.arange(n).flip(0)
    assert every.shape == (2, n, 3)
    assert torch.equal(net(x), every)
    assert torch.equal(net.score_all(x, back), every.flip(1))
    own = torch.stack([back[:2], torch.arange(2)])
    assert torch.equal(net.score_all(x, own), torch.stack([every[b, own[b]] for b in range(2)]))
    model = SmoothedClassifier(net, ablation, num_classes=3).eval()
    assert model.one_pass
    assert model.certify(x, PatchThreat(1, 1)).prediction.equal(model.predict(x))


def test_it_refuses_what_it_cannot_see(by_name):
    with pytest.raises(InvalidInput, match="ablation is blocks:2; a network of means sees columns or rows"):
        by_name(Blocks(2))
    with pytest.raises(InvalidInput, match="built for 1 channels of 6x8 pixels"):
        by_name(Columns(2)).score_all(toys.images(1, 3))
    with pytest.raises(InvalidInput, match="sees parts of an image"):
        by_name(None)
