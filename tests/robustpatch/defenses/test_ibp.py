"""The certificate of interval bounds against every content of every placement."""

from __future__ import annotations

from itertools import combinations_with_replacement, product

import pytest
import torch
from torch import nn

from robustpatch import PatchThreat
from robustpatch.defenses.ibp import IBP, BoundedClassifier
from robustpatch.errors import InvalidInput
from robustpatch.threats import Cross, Footprints, Mask, Patches, Several, Within
from robustpatch.threats.any_of import AnyOf
from tests import oracles, toys
from tests.robustpatch.defenses.bounds.nets import ends_of

SIZE = (4, 6)
CLASSES = 3


def defended(network: nn.Module, **options) -> BoundedClassifier:
    return IBP(**options).wrap(network, num_classes=CLASSES).eval()


def linear(scale: float = 1.0, size=SIZE) -> nn.Module:
    return _centred(toys.linear(channels=1, size=size, classes=CLASSES, scale=scale), size)


def deep(scale: float = 1.0) -> nn.Module:
    network = toys.seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 2, stride=2),
            nn.BatchNorm2d(3),
            nn.LeakyReLU(0.1),
            nn.MaxPool2d((1, 2), 1),
            nn.Flatten(),
            nn.Linear(12, CLASSES),
        ),
        seed=2,
    )
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([-1.0, 1.2, 0.7]))
        network[-1].weight *= scale
    return _centred(network, SIZE)


@torch.no_grad()
def _centred(network: nn.Module, size: tuple[int, int]) -> nn.Module:
    """With outputs around those of one image, all 0 but for a lead of class 1: about half can be certified."""
    network[-1].bias -= network(images(1, size))[0]
    network[-1].bias[1] += 0.3
    return network


def images(batch: int = 4, size=SIZE) -> torch.Tensor:
    return toys.images(batch, size=size, seed=3)


def patched(image: torch.Tensor, corners, height: int, width: int) -> torch.Tensor:
    """Every content of values 0, 1/2 and 1 on those rectangles."""
    pixels = sorted(set().union(*(oracles.rectangle(*corner, height, width) for corner in corners)))
    contents = torch.tensor(list(product((0.0, 0.5, 1.0), repeat=len(pixels))))
    out = image.repeat(len(contents), 1, 1, 1)
    for number, (row, column) in enumerate(pixels):
        out[:, 0, row, column] = contents[:, number]
    return out


def lead(logits: torch.Tensor, c: int) -> float:
    """The least of z_c - z_j over all images and rivals, in the network's own arithmetic."""
    others = torch.cat([logits[:, :c], logits[:, c + 1 :]], dim=1)
    return float((logits[:, c] - others.amax(dim=1)).min())


@torch.no_grad()
@pytest.mark.parametrize("patch", [(1, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize("build", [linear, deep])
@pytest.mark.parametrize("scale", [0.7, 1.0])
def test_no_content_at_any_placement_passes_a_bound(build, scale, patch):
    """Every placement, in row-major order, every content: the lead attained is never below its margin, and of a linear
    network the two are one. Certified is what is not below zero anywhere, and never changes."""
    model, x, threat = defended(build(scale)), images(), PatchThreat(*patch)
    certificate, margins = model.certify(x, threat), model.placement_margins(x, threat)
    corners = [(r, c) for r in range(SIZE[0] - patch[0] + 1) for c in range(SIZE[1] - patch[1] + 1)]
    assert margins.shape == (len(x), len(corners))
    assert torch.equal(certificate.certified, (margins >= 0).all(dim=1))
    assert torch.equal(certificate.certified, certificate.margin >= 0)
    assert bool((certificate.margin <= margins.amin(dim=1) + 1e-5)[certificate.certified].all())
    assert torch.equal(certificate.prediction, model.predict(x))
    for i, corner in product(range(len(x)), corners):
        attacked = patched(x[i], [corner], *patch)
        attained = lead(model(attacked), int(certificate.prediction[i]))
        bound = float(margins[i, corners.index(corner)])
        assert bound < attained
        if build is linear:
            assert attained < bound + 1e-4
        if certificate.certified[i]:
            assert bool((model.predict(attacked) == certificate.prediction[i]).all())


SHAPES: list[Patches] = [
    Mask.of(torch.tensor([[True, False, True]])),
    Within.of(PatchThreat(1, 2), torch.arange(SIZE[0] * SIZE[1]).view(SIZE) % 3 > 0),
    Footprints.of(torch.eye(SIZE[0] * SIZE[1]).view(-1, *SIZE)[1::2] > 0),
    Cross(3, 1),
]


@torch.no_grad()
@pytest.mark.parametrize("threat", SHAPES, ids=lambda threat: threat.shape)
@pytest.mark.parametrize("build", [linear, deep])
def test_no_content_of_any_shape_passes_a_bound(build, threat):
    """As of rectangles: every place of the shape, every content of its pixels and of no other."""
    model, x = defended(build(0.7)), images()
    certificate, margins = model.certify(x, threat), model.placement_margins(x, threat)
    places = threat.family(*SIZE)
    assert margins.shape == (len(x), len(places))
    assert torch.equal(certificate.certified, (margins >= 0).all(dim=1))
    for i, number in product(range(len(x)), range(len(places))):
        pixels = list(map(tuple, places.footprint(torch.tensor([number]))[0].nonzero().tolist()))
        contents = torch.tensor(list(product((0.0, 0.5, 1.0), repeat=len(pixels))))
        attacked = x[i].repeat(len(contents), 1, 1, 1)
        for column, (r, c) in enumerate(pixels):
            attacked[:, 0, r, c] = contents[:, column]
        attained = lead(model(attacked), int(certificate.prediction[i]))
        assert float(margins[i, number]) < attained
        if build is linear:
            assert attained < float(margins[i, number]) + 1e-4


def test_some_toys_are_certified_and_some_are_not():
    """The test above would say little of certificates that are all refused, or all given."""
    for build in (linear, deep):
        shares = [defended(build(scale)).certify(images(32), PatchThreat(1, 1)).certified for scale in (0.7, 1.0)]
        assert bool(torch.cat(shares).any())
        assert not bool(torch.cat(shares).all())


def one_pixel(row: int, column: int, size: tuple[int, int]) -> nn.Module:
    """Class 1 iff that one pixel is bright."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(size[0] * size[1], CLASSES))
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].weight[1, row * size[1] + column] = 2.0
        network[1].bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    return network.eval()


@pytest.mark.parametrize("size", [(5, 9), (9, 5)])
@pytest.mark.parametrize("patch", [(1, 1), (2, 3)])
def test_every_pixel_is_within_some_placement(size, patch):
    """Whichever pixel decides, in a corner or not, no image is certified."""
    x = torch.zeros(2, 1, *size)
    corners = [(row, column) for row in (0, size[0] - 1) for column in (0, size[1] - 1)]
    for row, column in [*corners, (2, 4), (3, 2)]:
        certificate = defended(one_pixel(row, column, size)).certify(x, PatchThreat(*patch))
        assert not bool(certificate.certified.any())
        assert bool((certificate.margin < 0).all())


@torch.no_grad()
def test_two_patches_and_any_of_two():
    """Each pair of placements by brute force; of several threats, the worst."""
    model, x = defended(deep()), images(8)
    pair = model.certify(x, PatchThreat(1, 1, 2))
    corners = list(product(range(SIZE[0]), range(SIZE[1])))
    pairs = list(combinations_with_replacement(corners, 2))
    worst = [
        lead(model(torch.cat([patched(image, some, 1, 1) for some in pairs])), int(c))
        for image, c in zip(x, pair.prediction, strict=True)
    ]
    assert bool((pair.margin < torch.tensor(worst))[pair.certified].all())
    assert bool(pair.certified.any())
    assert not bool(pair.certified.all())
    both = [PatchThreat(1, 3), PatchThreat(3, 1)]
    each = [model.certify(x, one).certified for one in both]
    assert torch.equal(model.certify(x, AnyOf(both)).certified, each[0] & each[1])
    assert not torch.equal(each[0], each[1])
    with pytest.raises(InvalidInput, match="patch is 2\\*1x1; only one patch has a map"):
        model.placement_margins(x, PatchThreat(1, 1, 2))
    with pytest.raises(InvalidInput, match=r"patch is 5\*1x1, with .* take fewer patches"):
        defended(linear(size=(28, 28))).certify(images(1, (28, 28)), PatchThreat(1, 1, 5))


@torch.no_grad()
def test_the_caller_s_images_and_the_batch_size_do_not_matter():
    model, x = defended(deep(0.9)), images(8)
    before, together = x.clone(), model.certify(x, PatchThreat(2, 1))
    assert torch.equal(x, before)
    for i in range(8):
        assert torch.equal(model.certify(x[i : i + 1], PatchThreat(2, 1)).certified, together.certified[i : i + 1])
    nothing = model.certify(x[:0], PatchThreat(2, 1))
    assert nothing.certified.shape == (0,)
    doubled = defended(deep(0.9).double()).certify(x, PatchThreat(2, 1))
    assert torch.equal(doubled.certified, together.certified)


def test_a_lead_that_only_float64_tells_is_predicted_as_certified():
    """Rounded to float32, the outputs would be equal, and class 0 predicted."""
    network = linear().double()
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].bias.copy_(torch.tensor([1.0, 1.0 + 1e-10, 0.0], dtype=torch.float64))
    model, x = defended(network), images()
    certificate = model.certify(x, PatchThreat(2, 2))
    assert bool(certificate.certified.all())
    assert torch.equal(certificate.prediction, model.predict(x))
    assert bool((model.predict(x) == 1).all())


def test_what_cannot_be_proved_is_refused():
    x, threat = images(), PatchThreat(2, 2)
    with pytest.raises(InvalidInput, match="training mode"):
        defended(linear()).train().certify(x, threat)
    with pytest.raises(InvalidInput, match="divide by 255"):
        defended(linear()).certify(x * 255, threat)
    with pytest.raises(InvalidInput, match="larger than the image"):
        defended(linear()).certify(x, PatchThreat(5, 5))
    with pytest.raises(InvalidInput, match=r"less than float32 .*; for float32: network.float\(\)$"):
        defended(linear().bfloat16()).certify(x, threat)
    model = defended(linear())
    for call in (lambda: model.certify(x, threat), lambda: model.predict(x), lambda: model(x)):
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(InvalidInput, match=r"32: leave torch.autocast$"):
            call()
    with pytest.raises(InvalidInput, match="num_classes is 4, but the network has 3 outputs"):
        IBP().wrap(linear(), num_classes=4).eval().certify(x, threat)
    huge = linear()
    with torch.no_grad():
        huge[1].weight.fill_(3e38)
    with pytest.raises(InvalidInput, match="NaN or infinite"):
        defended(huge).certify(torch.ones_like(x), threat)


def test_bounds_that_overflow_certify_nothing():
    """Finite outputs of the clean image, infinite bounds."""
    network = linear()
    with torch.no_grad():
        network[1].weight.fill_(3e38)
        network[1].weight[1] = -3e38
    assert not bool(defended(network).certify(torch.zeros(1, 1, *SIZE), PatchThreat(2, 2)).certified.any())


def test_a_layer_in_the_chain_twice_is_bounded_twice():
    """Steep below zero, where only a patch gets the second time: what is certified without that falls."""
    steep = nn.LeakyReLU(50.0)
    network = nn.Sequential(nn.Flatten(), steep, nn.Linear(2, 1), steep, nn.Linear(1, 2))
    with torch.no_grad():
        network[2].weight.copy_(torch.tensor([[1.0, -1.0]]))
        network[2].bias.fill_(0.3)
        network[4].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        network[4].bias.copy_(torch.tensor([5.0, 0.0]))
    model = IBP().wrap(network, num_classes=2).eval()
    clean, attacked = torch.tensor([[[[0.5, 0.0]]]]), torch.tensor([[[[0.5, 1.0]]]])
    assert [int(model.predict(x)) for x in (clean, attacked)] == [0, 1]
    assert not model.certify(clean, PatchThreat(1, 1)).certified


@torch.no_grad()
def test_outputs_are_within_their_bounds_without_onednn(monkeypatch):
    """In a batch large enough for NNPACK, whose transforms leave every pixel an error of the brightest's size."""
    model = defended(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Flatten(), nn.Linear(64, CLASSES)))
    convolution, _, head = layers = model.network
    for layer in (convolution, head):
        layer.weight.zero_()
        layer.bias.zero_()
    convolution.weight[0, 0, 1, 1] = 1.0
    x = torch.full((32, 1, 8, 8), 1e-6)
    x[:, :, ::5, ::3] = 1.0
    head.weight[1] = (x[0] < 0.5).flatten()
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    least, most = ends_of(layers, x[:1], x[:1])
    logits = model(x)
    assert bool(((least <= logits) & (logits <= most)).all())


class Counting(nn.Sequential):
    """A network that counts how often it is asked."""

    asked = 0

    def forward(self, x):
        Counting.asked += 1
        return super().forward(x)


def test_what_cannot_be_bounded_is_refused_before_the_network_is_asked():
    """Also where it is the second of two alternatives."""
    both = Several([PatchThreat(1, 2), PatchThreat(2, 1)])
    model = defended(Counting(linear()))
    model.certify(toys.images(1, 1, SIZE), PatchThreat(1, 1))
    asked = Counting.asked
    assert asked
    with pytest.raises(InvalidInput, match="1x2 & 2x1"):
        model.certify(toys.images(1, 1, SIZE), AnyOf([PatchThreat(1, 1), both]))
    assert Counting.asked == asked
