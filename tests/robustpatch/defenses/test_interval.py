"""Bounds hold for whatever a network computes, in any order of summation, and are attained where they can be."""

from __future__ import annotations

from fractions import Fraction
from itertools import permutations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustpatch.defenses.interval import bounds, last_margins, layers_of, rounding, sums_of_products
from robustpatch.errors import InvalidInput
from robustpatch.networks import MLP, MnistCNN, SmallCNN
from tests import toys

CHANNELS, SIZE = 2, (7, 6)


def norm(features: int, kind=nn.BatchNorm2d) -> nn.Module:
    """Batch norm whose scales have both signs."""
    layer = kind(features).eval()
    layer.running_mean.normal_(generator=torch.Generator().manual_seed(3))
    layer.running_var.uniform_(0.1, 2, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([-1.5, 1.0, -0.3, 2.0])[torch.arange(features) % 4])
        layer.bias.fill_(0.1)
    return layer


LAYERS = {
    "convolution": lambda: nn.Conv2d(2, 2, 3, padding=1),
    "stride": lambda: nn.Conv2d(2, 4, (2, 3), stride=(2, 1), padding=(0, 2)),
    "dilation": lambda: nn.Conv2d(2, 2, 2, dilation=2, padding="same", bias=False),
    "groups": lambda: nn.Conv2d(2, 4, 3, groups=2, padding=1),
    "average": lambda: nn.AvgPool2d(2, stride=1, padding=1, count_include_pad=False),
    "adaptive": lambda: nn.AdaptiveAvgPool2d((2, 3)),
    "maximum": lambda: nn.MaxPool2d(3, stride=2, padding=1),
    "adaptive maximum": lambda: nn.AdaptiveMaxPool2d(2),
    "norm": lambda: norm(2),
    "leaky": lambda: nn.LeakyReLU(0.2, inplace=True),
    "clipped": lambda: nn.Hardtanh(-0.3, 0.4),
    "dropped": lambda: nn.Sequential(nn.Dropout(0.5), nn.Identity(), nn.ReLU(inplace=True)),
}


def chain(names: list[str], seed: int) -> nn.Sequential:
    """Those layers one after the other, as far as each takes what the one before gives, and a linear one."""

    def build() -> nn.Sequential:
        layers, x = [], torch.zeros(1, CHANNELS, *SIZE)
        for name in names:
            layer = LAYERS[name]().eval()
            try:
                x = layer(x)
            except RuntimeError:
                continue
            layers.append(layer)
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(x.numel(), 3))

    return toys.seeded(build, seed)


@torch.no_grad()
@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(st.sampled_from(sorted(LAYERS)), max_size=4),
    seed=st.integers(0, 10**6),
    width=st.sampled_from([0.0, 1e-6, 0.3, 1.0]),
    double=st.booleans(),
)
def test_nothing_in_the_box_leaves_the_bounds(names, seed, width, double):
    """Its corners and inner points, in float32 and float64, alone and in company; the exact value, nearly, too."""
    network = chain(names, seed)
    chance = torch.Generator().manual_seed(seed)
    lower = torch.rand(1, CHANNELS, *SIZE, generator=chance) - 0.5
    upper = lower + width * torch.rand(lower.shape, generator=chance)
    network, lower, upper = (part.double() if double else part for part in (network, lower, upper))
    layers, last = layers_of(network)
    before = lower.clone(), upper.clone()
    least, most = bounds([*layers, last], lower, upper)
    share = torch.rand(12, *lower.shape[1:], generator=chance).to(lower)
    share[:6] = share[:6].round()
    x = torch.minimum(lower + share * (upper - lower), upper)
    found = [network(x), torch.cat([network(image[None]) for image in x])]
    exact = network.double()(x.double())
    network.to(lower)
    assert all(bool(((least <= some) & (some <= most)).all()) for some in (*found, exact))
    inner = bounds(layers, lower, upper)
    for c in range(3):
        margins = last_margins(last, *inner, torch.tensor([c]))
        for some in (*found, exact):
            gaps = (some[:, c, None] - some).amin(dim=0)
            assert bool((margins[0] <= gaps).all())
    assert torch.equal(lower, before[0])
    assert torch.equal(upper, before[1])


def fractions(values: torch.Tensor) -> list[Fraction]:
    return [Fraction(value) for value in values.double().flatten().tolist()]


@torch.no_grad()
def test_a_linear_layer_attains_its_bounds():
    """All corners of the box, in fractions: bounds and margins are the true optima, and nearly nothing outside."""
    layer = toys.seeded(lambda: nn.Linear(5, 3))
    chance = torch.Generator().manual_seed(0)
    lower = torch.rand(1, 5, generator=chance) - 0.5
    upper = lower + torch.rand(1, 5, generator=chance)
    corners = list(product(*zip(fractions(lower), fractions(upper), strict=True)))
    rows = [fractions(row) for row in layer.weight.detach()]
    offsets = fractions(layer.bias.detach())
    values = [
        [sum(w * a for w, a in zip(row, x, strict=True)) + b for row, b in zip(rows, offsets, strict=True)]
        for x in corners
    ]
    least, most = (end[0].tolist() for end in bounds([layer], lower, upper))
    for k in range(3):
        below, above = min(value[k] for value in values), max(value[k] for value in values)
        assert below - Fraction(1, 10**5) < Fraction(least[k]) < below
        assert above < Fraction(most[k]) < above + Fraction(1, 10**5)
        margins = last_margins(layer, lower, upper, torch.tensor([k]))[0].tolist()
        for j in set(range(3)) - {k}:
            below = min(value[k] - value[j] for value in values)
            assert below - Fraction(1, 10**5) < Fraction(margins[j]) < below


@torch.no_grad()
@pytest.mark.parametrize("weights", [[1e8, 1.0, -1e8, 3.0], [3e7, 1.25, -3e7, -1.5], [0.1, 0.2, -0.3, 1e-9]])
def test_every_order_of_summation_is_within(weights):
    """Of one and the same image: sums that cancel differ by much, and all are inside; so is the true value."""
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weights, weights[::-1]]))
        layer.bias.fill_(0.3)
    x = torch.tensor([[0.7, 0.9, 0.7, 0.9]])
    least, most = bounds([layer], x, x)
    margins = last_margins(layer, x, x, torch.tensor([0]))
    terms = [[*(weight * x[0]).detach(), torch.tensor(0.3)] for weight in layer.weight]
    offset = fractions(layer.bias.detach())[0]
    exact = [
        sum(w * a for w, a in zip(fractions(weight), fractions(x), strict=True)) + offset
        for weight in layer.weight.detach()
    ]
    sums = [[], []]
    for k in range(2):
        for order in permutations(terms[k]):
            total = torch.tensor(0.0)
            for term in order:
                total = total + term
            sums[k].append(float(total))
        assert len(set(sums[k])) > 1 or weights[0] < 1
        for value in (*sums[k], exact[k]):
            assert Fraction(float(least[0, k])) < value < Fraction(float(most[0, k]))
    assert float(margins[0, 1]) < min(sums[0]) - max(sums[1])


@torch.no_grad()
def test_a_sum_that_overflows_in_some_order_has_no_bounds():
    """It comes to 0, or to infinity: no number bounds it, and no class is proved by it."""
    layer = nn.Linear(4, 2)
    layer.weight.copy_(torch.tensor([[3e38, 3e38, -3e38, -3e38], [0.0, 0.0, 0.0, 0.0]]))
    layer.bias.copy_(torch.tensor([0.0, -1e35]))
    x = torch.ones(1, 4)
    assert {float(sum(order)) for order in permutations(layer.weight[0])} == {0.0, torch.inf, -torch.inf}
    turned = nn.Linear(4, 2)
    turned.weight.copy_(layer.weight[:, [0, 2, 1, 3]])
    turned.bias.copy_(layer.bias)
    for one in (layer, turned):
        least, most = bounds([one], x, x)
        assert not bool(torch.isfinite(least[0, 0]) | torch.isfinite(most[0, 0]))
        assert not bool(last_margins(one, x, x, torch.tensor([0]))[0, 1] >= 0)


@torch.no_grad()
def test_equal_classes_are_never_told_apart():
    """Rows alike: neither the first nor the second is proved, not even by a width of nothing."""
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        for fill in (0.0, 0.25):
            layer.weight.fill_(fill)
            layer.bias.fill_(fill)
            x = torch.ones(2, 3)
            margins = last_margins(layer, x, x, torch.tensor([0, 1]))
            assert bool((margins < 0).all())


@torch.no_grad()
def test_last_margins_of_mixed_classes_are_those_of_each():
    layer = toys.seeded(lambda: nn.Linear(4, 3))
    lower = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
    own = torch.tensor([2, 0, 1, 2, 0])
    mixed = last_margins(layer, lower, lower + 0.1, own)
    for i in range(5):
        each = last_margins(layer, lower[i : i + 1], lower[i : i + 1] + 0.1, own[i : i + 1])
        assert torch.allclose(mixed[i], each[0], atol=1e-6)


@torch.no_grad()
def test_without_rounding_the_bounds_are_nearly_the_same():
    """What training minimises is what is certified, but for rounding."""
    network = chain(["convolution", "norm", "leaky", "maximum", "average"], 5)
    layers, last = layers_of(network)
    x = torch.rand(3, CHANNELS, *SIZE, generator=torch.Generator().manual_seed(0))
    plain, outward = (bounds([*layers, last], x, x + 0.2, outward=some) for some in (False, True))
    for end, sign in ((0, 1), (1, -1)):
        assert bool((sign * (plain[end] - outward[end]) > 0).all())
        assert torch.allclose(plain[end], outward[end], atol=1e-4)
    own = torch.tensor([0, 1, 2])
    ends = bounds(layers, x, x + 0.2)
    gap = last_margins(last, *ends, own, outward=False) - last_margins(last, *ends, own)
    assert bool(((gap > 0) & (gap < 1e-4)).all())


@torch.no_grad()
def test_the_networks_of_the_library_are_chains():
    for network in (
        SmallCNN(image_size=(8, 8), widths=[2], hidden=3),
        MLP(image_size=(8, 8), in_channels=1, widths=[4, 3]),
        MLP(image_size=(8, 8), in_channels=1, widths=[4], norm=False),
        MnistCNN(in_channels=1),
    ):
        layers, last = layers_of(network.eval())
        x = torch.rand(2, 1, *((28, 28) if isinstance(network, MnistCNN) else (8, 8)))
        assert torch.equal(nn.Sequential(*layers, last)(x), network(x))


def test_a_layer_that_stands_in_the_chain_twice_counts_twice():
    rectifier = nn.LeakyReLU(50.0)
    first, second, head = nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 3)
    inner = nn.Sequential(second, rectifier)
    layers, last = layers_of(nn.Sequential(first, rectifier, inner, inner, head))
    assert layers == [first, rectifier, second, rectifier, second, rectifier]
    assert last is head


@torch.no_grad()
@pytest.mark.parametrize("onednn", [True, False])
def test_convolutions_are_sums_whatever_torch_would_transform(onednn, monkeypatch):
    """NNPACK, which takes large batches where oneDNN is off, errs everywhere by what the brightest pixel allows."""
    layer = nn.Conv2d(1, 2, 3, padding=1)
    layer.weight.zero_()[:, :, 1, 1] = 1.0
    layer.bias.zero_()
    x = torch.full((32, 1, 8, 8), 1e-6)
    x[:, :, ::5, ::3] = 1.0
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", onednn)
    least, most = bounds([layer], x[:1], x[:1])  # one image is too few for NNPACK
    with sums_of_products():
        out = layer(x)
    assert torch.backends.cudnn.enabled
    assert torch._C._get_nnpack_enabled()
    assert bool(((least <= out) & (out <= most)).all())


class Doubled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


HEAD = (nn.Flatten(), nn.Linear(4, 3))
HOOKED = nn.Sequential(nn.ReLU(), *HEAD)
HOOKED[0].register_forward_hook(lambda *_: None)
INSIDE = MLP(image_size=(2, 2), in_channels=1, widths=[3])
INSIDE.features.register_forward_hook(lambda *_: None)
CHAINED = nn.Module()
CHAINED.sequential = nn.Sequential(nn.ReLU(), *HEAD)
CHAINED.sequential.register_forward_hook(lambda *_: None)
REPLACED = nn.Sequential(nn.ReLU(), *HEAD)
REPLACED[0].forward = torch.sigmoid


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (nn.Sequential(nn.Sigmoid(), *HEAD), r"Sequential.0, a Sigmoid, whose bounds are not known; use Linear"),
        (nn.Sequential(nn.Sequential(nn.Softmax(1)), *HEAD), "Sequential.0.0, a Softmax"),
        (nn.Sequential(*HEAD, nn.ReLU()), "ends with ReLU; end it with nn.Linear"),
        (nn.Sequential(), "ends with Identity"),
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), *HEAD), "padding_mode is 'circular'"),
        (nn.Sequential(nn.LeakyReLU(-0.1), *HEAD), "negative_slope is -0.1"),
        (nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), *HEAD), "track_running_stats is False"),
        (nn.Sequential(nn.Flatten(0), nn.Linear(4, 3)), "start_dim is 0"),
        (nn.Sequential(nn.MaxPool2d(1, return_indices=True), *HEAD), "return_indices is True"),
        (HOOKED, r"hooks on Sequential.0, .* remove them"),
        (INSIDE, r"hooks on MLP.0, "),
        (CHAINED, r"hooks on Module, "),
        (REPLACED, r"Sequential.0, or another forward"),
        (nn.Sequential(nn.Flatten(), Doubled(nn.Linear(4, 3))), "Sequential.1, a Doubled with a forward of its own"),
        (toys.Fixed([0.0, 1.0]), "Fixed, a Fixed"),
    ],
)
def test_what_has_no_bounds_is_refused_by_name(network, said):
    with pytest.raises(InvalidInput, match=said):
        layers_of(network)


def test_rounding_is_refused_where_nothing_bounds_it():
    with pytest.raises(InvalidInput, match=r"bfloat16, .*use float\(\)"):
        rounding(10, torch.bfloat16)
    with pytest.raises(InvalidInput, match=r"sums 10000000 products.* use network.double\(\)"):
        rounding(10_000_000, torch.float32)
    assert 2 * 18 * 2**-24 < rounding(10, torch.float32) < 2.001 * 18 * 2**-24
