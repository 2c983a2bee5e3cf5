"""What code a model is, told without its source file: every change of behaviour shows, and nothing else does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from evaluate.model.fingerprint import code_of
from robustpatch.ablations.kinds import Columns
from tests.attacks.toys import smoothed

# One model in many versions: each line replaces another of it.
VERSIONS = """
import functools, torch
from torch import nn
EPS, TABLE, _known = 0.5, [1, 2], {}
def inner(x): return x * 2
def helper(x): return inner(x)
def scaled(by):
    def scale(x): return x * by
    return scale
class Kept:
    def __init__(self, size): self.size = size
    def touched(self): return self.size
class Parent(nn.Module):
    def body(self, x): return helper(x) + EPS
class Net(Parent):
    gain = 1.0
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        self.act = nn.ReLU()
        self.size, self.mean, self.kept, self.shape = 3, torch.tensor([0.1]), Kept(2), scaled(2)
        self.part = functools.partial(helper)
        self.register_buffer("std", torch.tensor([0.2]), persistent=False)
        self._cache, self.level = {}, "a"
        torch.nn.init.ones_(self.conv.weight)
    def forward(self, x):
        return self.body(self.act(self.conv(x))) + len(_known) + TABLE[0] * self.gain
net = Net().eval()
"""
CHANGES = [
    ("x * 2", "x * 3"),
    ("x * by", "x + by"),
    ("scaled(2)", "scaled(3)"),
    ("EPS, TABLE, _known = 0.5", "EPS, TABLE, _known = 0.25"),
    ("[1, 2]", "[2, 2]"),
    ("helper(x) + EPS", "helper(x) - EPS"),
    ("gain = 1.0", "gain = 2.0"),
    ("nn.ReLU()", "nn.GELU()"),
    ("padding=1", "padding=1, padding_mode='circular'"),
    ("self._cache, self.level = {}, 'a'".replace("'", '"'), 'self._cache, self.level = {}, "b"'),
    ("= 3, torch", "= 4, torch"),
    ("tensor([0.1])", "tensor([0.3])"),
    ("tensor([0.2])", "tensor([0.3])"),
    ("Kept(2)", "Kept(3)"),
    ("return self.size", "return self.size - 1"),
    ("partial(helper)", "partial(inner)"),
    ("class Net(Parent):", "class Other(nn.Module):\n    def more(self): pass\nclass Net(Parent, Other):"),
    ("net = Net().eval()", "net = Net().eval()\nnet.register_forward_hook(lambda _, x, y: -y)"),
    *(
        ("net = Net().eval()", f"net = Net().eval()\nnet.{after}")  # none of its code says so
        for after in (
            "size = 4",
            "_limit = 4",
            "mean = torch.tensor([0.3])",
            "std.fill_(0.3)",
            "shape = scaled(3)",
            "kept = Kept(3)",
            "part = functools.partial(inner)",
            "act = nn.GELU()",
            "conv.stride = (2, 2)",
        )
    ),
]
SAME = [
    ("    gain = 1.0", "    # a comment\n\n    gain = 1.0"),
    ("_known = 0.5, [1, 2], {}", "_known = 0.5, [1, 2], {1: 2}"),
    ("net = Net().eval()", "net = Net().eval()\nnet._cache[0] = 1\nunrelated = 3"),
]


def version(change=None):
    """The model so changed, in a module of its own, as a notebook would have it."""
    text = VERSIONS if change is None else VERSIONS.replace(*change)
    assert (text != VERSIONS) == (change is not None)
    inside: dict[str, Any] = {"__name__": "of_no_file"}
    exec(compile(text, "nowhere", "exec"), inside)
    return inside["net"]


@pytest.mark.parametrize("change", CHANGES, ids=[after for _, after in CHANGES])
def test_code_and_values_tell_models_of_equal_weights_apart(change):
    """Helper functions, constants, closures, attributes, unsaved buffers, bases and hooks, without a source file."""
    net, other = version(), version(change)
    assert {name: tensor.tolist() for name, tensor in net.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in other.state_dict().items()
    }
    assert code_of(net) != code_of(other)
    for wrap in (lambda base: smoothed(base, Columns(2), 2), lambda base: torch.nn.Sequential(base)):
        assert code_of(wrap(net)) != code_of(wrap(other))


@pytest.mark.parametrize("change", SAME)
def test_what_is_no_part_of_a_model_leaves_it_the_same(change):
    """Comments, caches and what the model never names."""
    assert code_of(version()) == code_of(version()) == code_of(version(change))
