"""Digital watermarking: saliency, mask and inpainting, each against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation, binary_erosion
from torch import nn
from torch.nn import functional

from robustpatch.defenses.watermarking import Watermarking, inpaint, saliency
from tests import toys

SIZE = (5, 6)


class Twice(nn.Module):
    """Two hidden layers with rectifiers between, spelled by `rectify`."""

    def __init__(self, rectify) -> None:
        super().__init__()
        self.rectify = rectify
        self.first, self.second, self.last = nn.Linear(60, 12), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x):
        return self.last(self.rectify(self.second(self.rectify(self.first(x.flatten(1))))))


RECTIFIERS = {
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "functional": functional.relu,
    "functional in place": lambda x: functional.relu(x, inplace=True),
    "functional relu_": functional.relu_,
    "torch": torch.relu,
    "torch relu_": torch.relu_,
    "method": lambda x: x.relu(),
    "method relu_": lambda x: x.relu_(),
}


def guided(net: Twice, image: torch.Tensor) -> torch.Tensor:
    """Guided backpropagation of one image's highest logit by matrix products."""
    a = net.first(image.flatten())
    b = net.second(a.clamp(min=0))
    scores = net.last(b.clamp(min=0))
    back = net.last.weight[int(scores.argmax())]
    for z, layer in ((b, net.second), (a, net.first)):
        back = torch.where((z > 0) & (back > 0), back, 0) @ layer.weight
    return back.reshape(2, *SIZE).abs().amax(dim=0)


@pytest.mark.parametrize("spelled", RECTIFIERS)
def test_saliency_is_guided_backpropagation_however_the_rectifier_is_spelled(spelled):
    """Image by image; it is another than the plain gradient's."""
    net, x = toys.seeded(lambda: Twice(RECTIFIERS[spelled])), toys.images(5, 2, SIZE)
    with torch.no_grad():
        expected = torch.stack([guided(net, image) for image in x])
    assert torch.allclose(saliency(net, x), expected, atol=1e-6)
    leaf = x.clone().requires_grad_()
    plain = torch.autograd.grad(net(leaf).amax(dim=1).sum(), leaf)[0].abs().amax(dim=1)
    assert not torch.allclose(plain, expected, atol=1e-3)


def test_the_network_is_as_it_was_afterwards():
    """Its own gradient is the plain one again, also after a network that fails."""
    net, x = toys.seeded(lambda: Twice(torch.relu)), toys.images(2, 2, SIZE)

    def plain() -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(net(leaf).sum(), leaf)[0]

    before = plain()
    saliency(net, x)
    with pytest.raises(RuntimeError):
        saliency(net, toys.images(2, 3, SIZE))
    assert torch.equal(plain(), before)


@settings(max_examples=40)
@given(
    st.sampled_from([0.0, 0.2, 0.4, 0.7]), st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 5]), st.integers(0, 20)
)
def test_the_mask_is_the_opened_dense_part_of_the_saliency(threshold, erode, dilate, seed):
    """By scipy's morphology, what lies outside the image neither taking nor adding anything."""
    net = toys.seeded(lambda: Twice(torch.relu), seed)
    x = toys.images(3, 2, SIZE, seed)
    model = Watermarking(threshold, erode, dilate).wrap(net, num_classes=toys.CLASSES)
    for image, found in zip(x, model.mask(x), strict=True):
        seen = saliency(net, image[None])[0].numpy()
        mask = seen > threshold * seen.max()
        mask = binary_erosion(mask, np.ones((erode, erode)), border_value=1)
        mask = binary_dilation(mask, np.ones((dilate, dilate)))
        assert found.tolist() == mask.tolist()


def by_loops(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Ring by ring, each pixel from the known among its eight neighbours."""
    out, known = image.clone(), ~mask
    _, height, width = image.shape
    while True:
        found = {}
        for r in range(height):
            for c in range(width):
                near = [
                    (i, j)
                    for i in range(max(r - 1, 0), min(r + 2, height))
                    for j in range(max(c - 1, 0), min(c + 2, width))
                    if known[i, j]
                ]
                if not known[r, c] and near:
                    found[r, c] = torch.stack([out[:, i, j] for i, j in near]).mean(dim=0)
        if not found:
            return out
        for (r, c), value in found.items():
            out[:, r, c], known[r, c] = value, True


@given(st.tuples(st.integers(1, 8), st.integers(1, 8)), st.integers(1, 3), st.floats(0, 1), st.integers(0, 99))
def test_inpainting_fills_from_outside_ring_by_ring(size, channels, share, seed):
    """As the loops do; what is kept is kept to the bit, what is filled lies between values that were kept."""
    x = toys.images(3, channels, size, seed)
    mask = toys.images(3, 1, size, seed + 1)[:, 0] < share
    before = x.clone()
    filled = inpaint(x, mask)
    assert torch.allclose(filled, torch.stack([by_loops(*one) for one in zip(x, mask, strict=True)]), atol=1e-6)
    kept = ~mask[:, None].expand_as(x)
    assert torch.equal(filled[kept], x[kept])
    for image, chosen, out in zip(x, mask, filled, strict=True):
        for channel, values in zip(image, out, strict=True):
            if not bool(chosen.all()):
                assert float(values.min()) >= float(channel[~chosen].min()) - 1e-6
                assert float(values.max()) <= float(channel[~chosen].max()) + 1e-6
    assert torch.equal(x, before)


def test_an_image_that_is_masked_as_a_whole_stays_as_it_is():
    """Beside one that is not."""
    x = toys.images(2, 3, SIZE)
    mask = torch.zeros(2, *SIZE, dtype=torch.bool)
    mask[0], mask[1, 2:4, 2:4] = True, True
    filled = inpaint(x, mask)
    assert torch.equal(filled[0], x[0])
    assert not torch.equal(filled[1], x[1])


def test_a_bright_patch_that_decides_is_taken_out():
    """A network that looks at one bright square alone answers as if it were not there."""

    class Brightest(nn.Module):
        def forward(self, x):
            light = (x - 0.6).relu().sum(dim=(1, 2, 3))
            return torch.stack([torch.ones_like(light), light], dim=1)

    x = torch.full((1, 1, 12, 12), 0.5)
    x[..., 3:8, 4:9] = 1
    net = Brightest().eval()
    model = Watermarking().wrap(net, num_classes=2).eval()
    assert int(net(x).argmax()) == 1
    assert int(model.predict(x)) == 0
    assert torch.allclose(model.clean(x), torch.full_like(x, 0.5))


def test_nothing_is_taken_out_where_nothing_is_looked_at():
    """A network without gradient, and one whose guided gradient is 0: no mask, whatever the threshold."""
    constant = nn.Sequential(nn.Flatten(), nn.Linear(30, 3))
    with torch.no_grad():
        constant[1].weight.zero_()
    x = toys.images(2, 1, SIZE)
    for threshold in (0.0, 0.5):
        model = Watermarking(threshold, 1, 3).wrap(constant, num_classes=3).eval()
        assert not model.mask(x).any()
        assert torch.equal(model.clean(x), x)
