"""When a network is recorded anew: always when what can be told from outside has changed, and only then."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from robustpatch.defenses.bounds import Traced
from robustpatch.errors import InvalidInput
from tests import toys
from tests.robustpatch.defenses.bounds.nets import Of, norm

X = torch.rand(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))


def build() -> nn.Module:
    layers = {"norm": norm(1), "head": nn.Linear(4, 3)}
    network = toys.seeded(lambda: Of(lambda self, x: self.head(self.norm(x * self.scale).flatten(1)), **layers))
    network.scale, network.listed = 2.0, [1, 2]
    return network.eval()


CHANGES = {
    "layer": lambda network: setattr(network, "head", nn.Linear(4, 3)),
    "parameter": lambda network: setattr(network.head, "weight", nn.Parameter(torch.ones(3, 4))),
    "buffer": lambda network: setattr(network.norm, "running_mean", torch.ones(1)),
    "number": lambda network: setattr(network, "scale", 3.0),
    "number of the layer": lambda network: setattr(network.norm, "eps", 0.5),
    "function": lambda network: setattr(network, "function", lambda self, x: self.head(x.flatten(1))),
    "list": lambda network: network.listed.append(3),
    "forward": lambda network: setattr(network.head, "forward", lambda x: -x[:, :3]),
    "hook": lambda network: network.norm.register_forward_hook(lambda *a: a[-1] + 1),
    "hook before": lambda network: network.head.register_forward_pre_hook(lambda _, a: a[0] + 1),
    "type": lambda network: network.double(),
    "class": lambda network: setattr(network.head, "__class__", nn.modules.linear.NonDynamicallyQuantizableLinear),
}


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_replaced_is_recorded_anew(change):
    network, traced = build(), Traced()
    before = traced.of(network, X)
    assert traced.of(network, X) is before
    CHANGES[change](network)
    x = X.to(network.head.weight.dtype)
    after = traced.of(network, x)
    assert after is not before
    assert torch.equal(after(x), network(x))


@torch.no_grad()
def test_values_are_read_at_every_run():
    """In place, through `.data` and by an optimizer: one and the same graph."""
    network, traced = build(), Traced()
    graph, x = traced.of(network, X), X
    network.head.weight.data = torch.ones(3, 4)
    assert torch.equal(graph(x), network(x))
    network.head.bias.data.fill_(7.0)
    network.norm.running_var.fill_(3.0)
    network.norm.weight += 1
    assert traced.of(network, x) is graph
    assert torch.equal(graph(x), network(x))
    network.load_state_dict(build().state_dict())
    assert traced.of(network, x) is graph
    assert torch.equal(graph(x), network(x))


@torch.no_grad()
def test_other_images_have_graphs_of_their_own_and_mode_does_not_matter():
    layers = {"layer": nn.Conv2d(1, 3, 2)}
    network = toys.seeded(lambda: Of(lambda self, x: self.layer(x).mean((2, 3)), **layers))
    traced, wide = Traced(), torch.rand(1, 1, 2, 5)
    one, other = traced.of(network, X), traced.of(network, wide)
    assert one is traced.of(network.train(), X)
    assert network.layer.training
    assert torch.equal(one(X), network(X))
    assert torch.equal(other(wide), network(wide))


@torch.no_grad()
def test_a_hook_on_all_modules_counts_while_it_is_there():
    network, traced = build(), Traced()
    hook = register_module_forward_hook(lambda module, _, out: 2 * out if module is network.norm else None)
    try:
        assert torch.equal(traced.of(network, X)(X), network(X))
    finally:
        hook.remove()
    assert torch.equal(traced.of(network, X)(X), network(X))


class Counting(nn.Module):
    """Keeps what it must not: a number that grows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(4, 3), 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x.flatten(1))


class Keeping(Counting):
    """Keeps its features."""

    def forward(self, x):
        self.features = x * 2
        return self.layer(self.features.flatten(1))


@pytest.mark.parametrize("kind", [Counting, Keeping])
def test_a_network_that_changes_itself_is_refused_and_left_as_it_was(kind):
    network = kind().eval()
    before = dict(vars(network))
    with pytest.raises(InvalidInput, match="changes itself while it runs"):
        Traced().of(network, X)
    assert vars(network) == before


def test_copies_and_pickles_hold_no_graph():
    network, traced = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval(), Traced()
    graph = traced.of(network, X)
    for other in (copy.deepcopy(traced), pickle.loads(pickle.dumps(traced))):
        assert other.of(network, X) is not graph
    assert traced.of(network, X) is graph
    traced.forget()
    assert traced.of(network, X) is not graph


def test_constants_keep_the_type_they_had():
    """Whatever is the default later."""
    network = Of(lambda self, x: self.layer(x.flatten(1)) + torch.full((3,), 0.1), layer=nn.Linear(4, 3)).eval()
    graph = Traced().of(network, X)
    before = graph(X)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(graph(X), before)
    finally:
        torch.set_default_dtype(torch.float32)
