"""What a graph is made of: operators with bounds, of each image alone; all else is refused, naming it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustpatch.errors import InvalidInput
from tests import toys
from tests.robustpatch.defenses.bounds.nets import Of, graph_of

HEAD = (nn.Flatten(), nn.Linear(4, 3))


def of(function) -> nn.Module:
    """A linear network of what the function makes of the images, [batch, 1, 2, 2]."""
    return Of(lambda self, x: self.head(function(x).flatten(1)), head=nn.Linear(4, 3)).eval()


def _try(x):
    try:
        return float(x.max())
    except Exception:
        return 1.0


def _aliased(x):
    y = x * 2
    y.view(len(x), -1).relu_()
    return y


def _sliced(x):
    x[:, :, 0] = 0
    return x


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


class Strange(torch.Tensor):
    pass


STRANGE = torch.ones(1, 1, 2, 2).as_subclass(Strange)
MIXING = "would move the images along the first axis"
VALUE = r"asks for a value by aten\._local_scalar_dense"
REFUSED = [
    (nn.Sequential(nn.Sigmoid(), *HEAD), r"network\.0 \(Sigmoid\) runs aten\.sigmoid\.default, whose bounds"),
    (nn.Sequential(nn.Sequential(nn.Softmax(1)), *HEAD), r"network\.0\.0 \(Softmax\) runs aten\._softmax"),
    (nn.Sequential(nn.LeakyReLU(-0.1), *HEAD), r"negative_slope -0\.1, which is not monotone"),
    (nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), *HEAD), r"\(BatchNorm2d\) runs aten\._native"),
    (nn.Sequential(nn.Flatten(0), nn.Linear(8, 3)), r"cannot be traced on images of shape \(1, 2, 2\)"),
    (nn.Sequential(nn.MaxPool2d(1, return_indices=True)), "network returns tuple"),
    (nn.Sequential(), r"network returns outputs of shape \(batch, 1, 2, 2\)"),
    (Of(lambda _, x: torch.zeros(1, 3)), "that no image matters to"),
    (nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "lazy layers without weights"),
    (of(lambda x: x - x.mean(0)), r"aten\.mean\.dim, over all axes or the first"),
    (of(lambda x: x - x.mean()), r"aten\.mean\.default, whose bounds"),
    (of(lambda x: x - x.sum(0, keepdim=True)), r"aten\.sum\.dim_IntList, over all axes or the first"),
    (of(lambda x: x - x.amax(dim=(0, 1, 2, 3))), r"aten\.amax\.default, over all axes or the first"),
    (of(lambda x: x - x.amax()), r"aten\.amax\.default, over all axes or the first"),
    (of(lambda x: x.flip(0)), MIXING),
    (of(lambda x: x.flip(-4)), MIXING),
    (of(lambda x: x.roll(1, 0)), MIXING),
    (of(lambda x: x.roll(1)), MIXING),
    (of(lambda x: x.roll((1, 1), (3, 0))), MIXING),
    (of(lambda x: x.cumsum(0)), r"aten\.cumsum"),
    (of(lambda x: x.transpose(0, 1).reshape(-1, 4)), MIXING),
    (of(lambda x: x.permute(1, 0, 2, 3).permute(1, 0, 2, 3)), MIXING),
    (of(lambda x: x.reshape(1, -1, 2, 2).cumsum(1).reshape(-1, 1, 2, 2)), "number of images"),
    (of(lambda x: x.reshape(-1).flip(0).reshape(-1, 1, 2, 2)), "two images as for three|reshape|flip"),
    (of(lambda x: x.reshape(-1, 2).flip(1).reshape(-1, 4)), "two images as for three|reshape"),
    (of(lambda x: x[:1] + x), r"aten\.slice"),
    (of(lambda x: x[1:].mean(0) + x), r"aten\.slice|two images as for three"),
    (of(lambda x: x[torch.arange(len(x)) - 1]), "aten|two images as for three"),
    (of(lambda x: torch.cat([x[-1:], x[:-1]])), "slice|two images as for three"),
    (of(lambda x: x.flatten(1) @ x.flatten(1).t() @ x.flatten(1)), r"aten\.t\.default"),
    (of(lambda x: x / len(x)), "number of images"),
    (of(lambda x: x * (1 if len(x) < 3 else 2)), "two images as for three"),
    (of(lambda x: F.batch_norm(x, None, None, training=True)), r"aten\._native_batch_norm"),
    (of(lambda x: F.pad(x, (0, 0, 0, 0, 0, 0, 1, -1))), MIXING),
    (of(lambda x: F.dropout(x)), r"aten\.native_dropout"),
    (of(lambda x: x + torch.rand(1, 1, 2, 2)), r"aten\.rand"),
    (of(lambda x: x * random.random()), "not the same every time"),
    (of(lambda x: x * float(np.random.default_rng().random())), "not the same every time"),
    (of(lambda x: x * float(x.max())), VALUE),
    (of(lambda x: x if x.sum() > 3 else -x), VALUE),
    (of(lambda x: x * x.flatten().tolist()[0]), VALUE),
    (of(lambda x: x * _try(x)), VALUE),
    (of(lambda x: x[x > 0.5].sum() + x), "aten|traced"),
    (of(lambda x: torch.from_numpy(x.numpy() * 2)), "cannot be traced"),
    (of(_aliased), "memory was written to in place through another"),
    (of(_sliced), r"writes in place by aten\."),
    (of(Rounded.apply), r"aten\.round"),
    (of(lambda x: x * STRANGE), "a Strange that is no plain tensor"),
    (of(lambda x: x.double().float()), r"aten\._to_copy"),
    (of(lambda x: x / x), "by what depends on images"),
    (of(lambda x: torch.add(x, x, alpha=0.1)), "alpha 0.1"),
    (of(lambda x: x * (torch.ones(2, 3) @ torch.ones(3, 2))), r"aten\.mm\.default on parameters or constants alone"),
    (of(lambda x: F.max_pool2d(x, 1, return_indices=True)[1].float()), "aten"),
]  # fmt: skip


@pytest.mark.parametrize(("network", "said"), REFUSED)
def test_what_has_no_bounds_is_refused_by_name(network, said):
    with pytest.raises(InvalidInput, match=said) as error:
        graph_of(network.eval(), torch.rand(1, 1, 2, 2))
    assert "\n" not in str(error.value)


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_a_graph_is_of_every_number_of_images(batch):
    """Sizes taken from the images, views, constants as many as images, and axes as long as the batches recorded."""

    def function(self, x):
        x = F.conv2d(x.view(x.shape[0], 1, 2, 2), self.weight.weight.view(3, 1, 2, 2), padding=1)
        x = torch.cat([x, torch.zeros(len(x), 2, 3, 3), x.new_ones(x.size(0), 1, 3, 3)], dim=1)
        return F.adaptive_avg_pool2d(x, 1).squeeze(3).squeeze()[:, 1:4] + x.narrow(0, 0, len(x))[:, :3, 1, 1]

    network = toys.seeded(lambda: Of(function, weight=nn.Linear(4, 3)))
    graph, x = graph_of(network, torch.rand(7, 1, 2, 2)), torch.rand(batch, 1, 2, 2)
    before, out = x.clone(), graph(x)
    assert torch.equal(x, before)
    assert out.shape == (batch, 3)
    if batch > 1:  # `squeeze` takes the axis of one image away
        assert torch.equal(out, network(x))
    assert torch.allclose(out, torch.cat([graph(image[None]) for image in x]), atol=1e-6)


@torch.no_grad()
def test_writes_in_place_are_computed_anew():
    network = of(lambda x: (x.mul_(3).sub_(1).clamp_(-0.5, 0.5) + 1).relu_().add_(x))
    x = torch.rand(4, 1, 2, 2)
    before = x.clone()
    assert torch.equal(graph_of(network, x)(x), network(x.clone()))
    assert torch.equal(x, before)


def test_what_is_computed_for_nothing_does_not_matter():
    graph = graph_of(of(lambda x: (x.std(), x)[1]), torch.rand(1, 1, 2, 2))
    assert [str(node.op) for node in graph.nodes[1:]] == [
        "aten.reshape.default",
        "aten.t.default",
        "aten.addmm.default",
    ]
