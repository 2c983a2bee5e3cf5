"""The leads of one class over others, in the last linear operator, and bounds of linear operators alone."""

from __future__ import annotations

from fractions import Fraction
from itertools import permutations, product

import pytest
import torch
from torch import Tensor, nn

from robustpatch.defenses.bounds import Box, margins
from robustpatch.defenses.bounds.head import first_of, head_of
from robustpatch.defenses.bounds.rounding import rounding, sums_of_products
from robustpatch.errors import InvalidInput
from robustpatch.networks import MLP, SmallCNN
from tests import toys
from tests.robustpatch.defenses.bounds.nets import Of, ends_of, graph_of


def last_margins(layer: nn.Module, lower: Tensor, upper: Tensor, own: Tensor) -> Tensor:
    return margins(graph_of(layer.eval(), lower), {0: Box(lower, upper)}, own)


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
    least, most = (end[0].tolist() for end in ends_of(layer.eval(), lower, upper))
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
    least, most = ends_of(layer.eval(), x, x)
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
        least, most = ends_of(one.eval(), x, x)
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
def test_the_head_and_the_first_operator_are_found_where_they_are_all_there_is():
    x = torch.rand(2, 1, 8, 8)
    mlp = MLP(image_size=(8, 8), in_channels=1, widths=[4], norm=False).eval()
    cnn = SmallCNN(image_size=(8, 8), widths=[2], hidden=3).eval()
    assert head_of(graph_of(mlp, x)) is not None
    assert head_of(graph_of(cnn, x)) is not None
    assert first_of(graph_of(mlp, x)) is not None
    assert first_of(graph_of(cnn, x)) is None
    beside = Of(lambda self, x: self.layer(x.flatten(1)) + x[:, 0, 0, :3], layer=nn.Linear(64, 3)).eval()
    assert head_of(graph_of(beside, x)) is None
    assert first_of(graph_of(beside, x)) is None


@torch.no_grad()
def test_a_network_may_end_with_something_else():
    """A rectifier at the end: classes that are both 0 are equal, and none leads."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU())
    network[1].weight.zero_()
    network[1].bias.copy_(torch.tensor([1.0, -1.0]))
    x = torch.zeros(2, 1, 1, 2)
    lead = last_margins(network, x, x + 1, torch.tensor([0, 1]))
    assert 0.99 < float(lead[0, 1]) < 1
    assert float(lead[1, 0]) < -1
    network[1].bias.fill_(-1.0)
    assert bool((last_margins(network, x, x + 1, torch.tensor([0, 1])) < 0).all())


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
    network = nn.Sequential(layer, nn.Flatten()).eval()
    least, most = ends_of(network, x[:1], x[:1])  # one image is too few for NNPACK
    with sums_of_products():
        out = network(x)
    assert torch.backends.cudnn.enabled
    assert torch._C._get_nnpack_enabled()
    assert bool(((least <= out) & (out <= most)).all())


def test_rounding_is_refused_where_nothing_bounds_it():
    with pytest.raises(InvalidInput, match=r"bfloat16, .*use float\(\)"):
        rounding(10, torch.bfloat16)
    with pytest.raises(InvalidInput, match=r"sums 10000000 products.* use network.double\(\)"):
        rounding(10_000_000, torch.float32)
    assert 2 * 18 * 2**-24 < rounding(10, torch.float32) < 2.001 * 18 * 2**-24
