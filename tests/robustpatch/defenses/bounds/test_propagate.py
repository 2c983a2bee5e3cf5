"""Bounds hold for whatever a network computes, in any order of summation, and are attained where they can be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustpatch.defenses.bounds import Box, bounds, margins
from robustpatch.defenses.bounds.rules import RULES
from tests import toys
from tests.robustpatch.defenses.bounds.nets import CHANNELS, LAYERS, SIZE, Of, chain, ends_of, graph_of


@torch.no_grad()
def nothing_leaves(network: nn.Module, seed: int, width: float, double: bool, *, products: bool = True) -> None:
    """Corners and inner points of a box, in float32 and float64, alone and in company; where `products` come last,
    whose rounding is all that counts, the exact value, nearly, too.
    """
    chance = torch.Generator().manual_seed(seed)
    lower = torch.rand(1, CHANNELS, *SIZE, generator=chance) - 0.5
    upper = lower + width * torch.rand(lower.shape, generator=chance)
    network, lower, upper = (part.double() if double else part for part in (network, lower, upper))
    before = lower.clone(), upper.clone()
    graph = graph_of(network, lower)
    (least, most), sound = bounds(graph, Box(lower, upper))
    assert bool(sound)
    share = torch.rand(12, *lower.shape[1:], generator=chance).to(lower)
    share[:6] = share[:6].round()
    x = torch.minimum(lower + share * (upper - lower), upper)
    found = [graph(x), network(x.clone()), torch.cat([network(image[None].clone()) for image in x])]
    assert torch.equal(found[0], found[1])
    if products:
        found.append(network.double()(x.double()))
        network.to(lower)
    for some in found:
        assert bool(((least <= some) & (some <= most)).all())
    for c in range(3):
        lead = margins(graph, {0: Box(lower, upper)}, torch.tensor([c]))
        for some in found:
            assert bool((lead[0] <= (some[:, c, None] - some).amin(dim=0)).all())
    assert torch.equal(lower, before[0])
    assert torch.equal(upper, before[1])


@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(st.sampled_from(sorted(LAYERS)), max_size=4),
    seed=st.integers(0, 10**6),
    width=st.sampled_from([0.0, 1e-6, 0.3, 1.0]),
    double=st.booleans(),
)
def test_nothing_in_the_box_leaves_the_bounds(names, seed, width, double):
    nothing_leaves(chain(names, seed), seed, width, double)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("name", sorted(LAYERS))
def test_every_layer_alone(name, double):
    """What the first layer computes of a box, and the second of bounds."""
    for names in ([name], ["convolution", name]):
        for width in (0.0, 0.5):
            nothing_leaves(chain(names, 3), 4, width, double)


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(LAYERS))
def test_every_component_of_every_layer(name):
    """Without a sum over all of them behind, in which what one component lacks is lost among the others."""
    network = nn.Sequential(*chain([name], 3)[:-1]).eval()
    chance = torch.Generator().manual_seed(0)
    lower = torch.rand(1, CHANNELS, *SIZE, generator=chance) - 0.7
    upper = lower + 0.8 * torch.rand(lower.shape, generator=chance)
    share = torch.rand(400, *lower.shape[1:], generator=chance)
    share[::2] = share[::2].round()
    share[:2] = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    x = torch.minimum(lower + share * (upper - lower), upper)
    least, most = ends_of(network, lower, upper)
    out = network(x.clone())
    assert bool(((least <= out) & (out <= most)).all())


@torch.no_grad()
def test_the_layers_of_these_tests_run_every_operator_with_a_rule():
    """A rule that no network here uses would be tested by none; the few left out have tests of their own below."""
    x, seen = torch.rand(1, CHANNELS, *SIZE), set()
    for name in LAYERS:
        for names in ([name], ["convolution", name]):
            seen |= {node.op for node in graph_of(chain(names, 0), x).nodes}
    seen |= {node.op for function in RARE.values() for node in graph_of(rare(function), x).nodes}
    missing = {str(op) for op in set(RULES) - seen}
    # The same rules by other names, or what another version of torch runs in their place.
    assert missing <= {
        "aten.native_batch_norm.default", "aten._native_batch_norm_legit_no_training.default", "aten.add.Scalar",
        "aten.sub.Scalar", "aten.mul.Scalar", "aten.div.Scalar", "aten.clamp_min.Tensor", "aten.clamp_max.Tensor",
        "aten.replication_pad1d.default", "aten.upsample_nearest2d.default",
    }  # fmt: skip


RARE = {
    "mm": lambda x, w: x.flatten(1)[:, :3] @ w,
    "minimum": lambda x, w: torch.minimum(x, -x)[:, 0, 0, :3],
    "amin": lambda x, w: x.amin(dim=(1, 3))[:, :3],
    "select": lambda x, w: x.select(1, 1).unbind(1)[2][:, 1:4],
    "stack": lambda x, w: torch.stack([x, -x], dim=2).flatten(1)[:, 80:83],
    "clamp tensor": lambda x, w: torch.clamp(x, w.amin(), w.amax())[:, 0, 1, :3],
    "clamp sides": lambda x, w: (x.clamp_min(0.1) - x.clamp_max(0.2))[:, 0, 1, :3],
    "ones": lambda x, w: torch.cat([x[:, 0, 0, :2], x.new_ones(len(x), 1)], dim=1),
    "full": lambda x, w: torch.cat([x[:, 0, 0, :2], torch.full_like(x[:, 0, 0, :1], 0.3)], dim=1),
    "zeros": lambda x, w: torch.cat([x[:, 0, 0, :2], x.new_zeros(len(x), 1)], dim=1),
    "shuffle": lambda x, w: nn.functional.pixel_shuffle(x.repeat(1, 2, 1, 1), 2)[:, 0, 0, :3],
    "unshuffle": lambda x, w: nn.functional.pixel_unshuffle(x[:, :, :6], 2)[:, 3, 1, :3],
    "upsampled": lambda x, w: nn.functional.interpolate(x, scale_factor=2)[:, 1, 5, 2:5],
    "channels": lambda x, w: nn.functional.channel_shuffle(x.repeat(1, 2, 1, 1), 2)[:, :3, 1, 1],
    "transposed": lambda x, w: x.transpose(2, 3)[:, 1, 1, :3],
    "reversed": lambda x, w: (torch.rsub(x, 0.3) + 0.1 - 0.7)[:, 0, 0, :3],
    "sections": lambda x, w: x.split([1, 3, 3], dim=2)[1][:, 0, :, 0],
    "line": lambda x, w: nn.functional.pad(x[:, 0], (1, 1), mode="reflect")[:, 0, :3],
}  # fmt: skip


def rare(function) -> nn.Module:
    weight = nn.Linear(3, 3, bias=False)
    return toys.seeded(lambda: Of(lambda self, x: function(x, self.weight.weight), weight=weight))


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("name", sorted(RARE))
def test_operators_that_few_networks_run(name, double):
    for width in (0.0, 0.5):
        nothing_leaves(rare(RARE[name]), 5, width, double, products=False)


@torch.no_grad()
def test_resnet18_is_bounded():
    from torchvision.models import resnet18

    network = toys.seeded(lambda: resnet18(num_classes=3))
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    least, most = ends_of(network, x - 1e-4, x + 1e-4)
    moved = x + 1e-4 * (2 * torch.rand(4, *x.shape[1:], generator=torch.Generator().manual_seed(1)) - 1)
    out = network(moved)
    assert bool(((least < out) & (out < most)).all())
    assert bool(torch.isfinite(most - least).all())


@torch.no_grad()
def test_without_rounding_the_bounds_are_nearly_the_same():
    """What training minimises is what is certified, but for rounding."""
    network = chain(["convolution", "norm", "leaky", "maximum", "average"], 5)
    x = torch.rand(3, CHANNELS, *SIZE, generator=torch.Generator().manual_seed(0))
    graph, box = graph_of(network, x), Box(x, x + 0.2)
    plain, outward = (bounds(graph, box, outward=some)[0] for some in (False, True))
    for end, sign in ((0, 1), (1, -1)):
        assert bool((sign * (plain[end] - outward[end]) > 0).all())
        assert torch.allclose(plain[end], outward[end], atol=1e-4)
    own = torch.tensor([0, 1, 2])
    gap = margins(graph, {0: box}, own, outward=False) - margins(graph, {0: box}, own)
    assert bool(((gap > 0) & (gap < 1e-4)).all())


def test_bounds_without_rounding_have_gradients():
    """Of every parameter, those of finite differences."""
    network = chain(["convolution", "norm", "leaky", "residual"], 5).double()
    x = torch.rand(2, CHANNELS, *SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss() -> torch.Tensor:
        return bounds(graph_of(network, x), Box(x, x + 0.1), outward=False)[0].upper.sum()

    value = loss()
    value.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        step = torch.zeros_like(parameter)
        step.view(-1)[0] = 1e-6
        with torch.no_grad():
            parameter += step
            difference = (loss() - value) / 1e-6
            parameter -= step
        assert float(difference) == pytest.approx(float(parameter.grad.view(-1)[0]), rel=1e-3, abs=1e-4), name


@torch.no_grad()
@pytest.mark.parametrize("after", [nn.Hardtanh(0, 1), nn.ReLU6(), nn.MaxPool2d(1), Of(lambda _, x: x[:, :, :, :1])])
def test_an_infinite_bound_on_the_way_proves_nothing(after):
    """Whatever a later layer makes of it: the value was inf - inf (pitfall 26)."""
    first, second, last = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1, bias=False), nn.LazyLinear(2)
    first.weight.fill_(20.0)
    first.bias.zero_()
    second.weight.copy_(torch.tensor([3e38, -3e38]).view(1, 2, 1, 1))
    network = nn.Sequential(first, second, after, nn.Flatten(), last).eval()
    network(torch.zeros(1, 1, 1, 2))
    last.weight.zero_()
    last.bias.copy_(torch.tensor([1.0, 0.0]))
    x = torch.zeros(2, 1, 1, 2)
    graph, upper = graph_of(network, x), x.clone()
    upper[1, 0, 0, 1] = 1.0
    sound = bounds(graph, Box(x, upper))[1]
    assert sound.tolist() == [True, False]
    lead = margins(graph, {0: Box(x, upper)}, torch.tensor([0, 0]))
    assert bool(lead[0, 1] > 0)
    assert not bool(lead[1, 1] >= 0)


@torch.no_grad()
@pytest.mark.parametrize(
    "average", [nn.AvgPool2d(10), nn.AdaptiveAvgPool2d(1), Of(lambda _, x: x.mean((2, 3), keepdim=True))]
)
def test_a_mean_whose_sum_overflows_in_some_order_has_no_bounds(average):
    """Fifty times 1e37 and fifty times -1e37: the mean is 0, or infinite, as the sum is on the way."""
    scale = nn.Conv2d(1, 1, 1)
    scale.weight.fill_(2e37)
    scale.bias.fill_(-1e37)
    network = nn.Sequential(scale, average, nn.Flatten()).eval()
    x = (torch.arange(100) % 2).float().view(1, 1, 10, 10)
    least, most = ends_of(network, x, x)
    assert not bool(torch.isfinite(least).any() | torch.isfinite(most).any())


@torch.no_grad()
def test_a_norm_whose_difference_overflows_has_no_bounds():
    """a - mean is infinite in one order of batch norm's formula, and a·scale - mean·scale small in the other."""
    layer, scale = nn.BatchNorm2d(1).eval(), nn.Conv2d(1, 1, 1)
    layer.running_mean.fill_(-3.3e38)
    layer.running_var.fill_(1e37)
    layer.weight.fill_(1e-19)
    scale.weight.fill_(5e37)
    scale.bias.zero_()
    network, x = nn.Sequential(scale, layer, nn.Flatten()).eval(), torch.ones(1, 1, 1, 1)
    least, most = ends_of(network, x, x)
    assert not bool(torch.isfinite(least).any() | torch.isfinite(most).any())
