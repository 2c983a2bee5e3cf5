"""Which model a run is of: its files show, and what is changed at run time; code of no file is known by nothing."""

from __future__ import annotations

import functools
import sys

import pytest
import torch

from evaluate.model.identity import identity_of
from evaluate.runs.run_identity import claim
from robustpatch.ablations.kinds import Columns
from robustpatch.cli.import_by_name import module_of
from robustpatch.errors import InvalidInput
from tests.attacks.toys import smoothed

# One model in many versions: each line replaces another of it.
VERSIONS = """
import functools, torch
from torch import nn
EPS, TABLE, _known = 0.5, [1, 2], {}
def inner(x): return x * 2
def helper(x): return inner(x)
def negated(_, x, y): return -y
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
    ("    gain = 1.0", "    # a comment\n\n    gain = 1.0"),
]
AT_RUN_TIME = [  # none of the model's files says so
    "size = 4",
    "_limit = 4",
    "mean = torch.tensor([0.3])",
    "std.fill_(0.3)",
    "shape = inside.scaled(3)",
    "kept = inside.Kept(3)",
    "part = functools.partial(inside.inner)",
    "act = torch.nn.GELU()",
    "conv.stride = (2, 2)",
    "register_forward_hook(inside.negated)",
]
OF_THE_MODULE = [
    "EPS = 0.25",
    "TABLE[0] = 2",
    "helper = inside.inner",
    "Net.gain = 2.0",
    "Kept.touched = inside.helper",
]
SAME = ["net._cache[0] = 1", "_known[1] = 2", "unrelated = 3"]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Returns the module that such text is, from a file of one name in a folder of its own."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def load(change: tuple[str, str] = ("", "")):
        assert change[0] in VERSIONS
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "versions.py").write_text(VERSIONS.replace(change[0], change[1], 1))
        monkeypatch.delitem(sys.modules, "versions", raising=False)
        return module_of(f"{folder}/versions.py:net", "model")

    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "versions", sys)  # as it was afterwards
    return load


def told(inside, wrap=lambda net: net):
    return identity_of(wrap(inside.net))


WRAPS = (lambda net: net, lambda net: smoothed(net, Columns(2), 2), lambda net: torch.nn.Sequential(net))


@pytest.mark.parametrize("change", CHANGES, ids=[after for _, after in CHANGES])
def test_files_tell_models_of_equal_weights_apart(change, made):
    """Helper functions, constants, closures, attributes, unsaved buffers, bases and hooks; equal files are equal."""
    before = [told(made(), wrap) for wrap in WRAPS]
    assert before == [told(made(), wrap) for wrap in WRAPS]
    after = [told(made(change), wrap) for wrap in WRAPS]
    for one, other in zip(before, after, strict=True):
        assert one["model_sha256"] == other["model_sha256"]
        assert one["model_files"].keys() == {"versions.py"} == other["model_files"].keys()
        assert one["model_files"] != other["model_files"]


@pytest.mark.parametrize("edit", [*(f"net.{edit}" for edit in AT_RUN_TIME), *OF_THE_MODULE])
def test_what_is_changed_at_run_time_tells_models_of_equal_files_apart(edit, made):
    """Attributes, hooks, closures, unsaved buffers; constants, functions and methods that are replaced."""
    inside = made()
    before = [told(inside, wrap) for wrap in WRAPS]
    if " = " in edit and not edit.startswith(("net.", "Net.", "Kept.", "TABLE")):
        name, value = edit.split(" = ")
        setattr(inside, name, eval(value, {"inside": inside}))
    else:
        exec(f"inside.{edit}", {"inside": inside, "torch": torch, "functools": functools})
    after = [told(inside, wrap) for wrap in WRAPS]
    for one, other in zip(before, after, strict=True):
        assert (one["model_sha256"], one["model_files"]) == (other["model_sha256"], other["model_files"])
        assert one["model_values"] != other["model_values"]


@pytest.mark.parametrize("edit", SAME)
def test_what_is_no_part_of_a_model_leaves_it_the_same(edit, made):
    """Caches, and what the model never names."""
    inside = made()
    before = told(inside)
    exec(f"inside.{edit}", {"inside": inside})
    assert told(inside) == before


@pytest.mark.parametrize("space", [{"__name__": "of_no_file"}, {}, {"__name__": __name__}])
def test_a_model_of_no_file_is_run_and_not_resumed(space, tmp_path):
    """Typed in or made by `exec`: as another process would know nothing of it, not even this one goes on with it."""
    exec(compile(VERSIONS, "<stdin>", "exec"), space)
    found = [identity_of(smoothed(space["net"], Columns(2), 2)) for _ in range(2)]
    assert found[0] != found[1]
    assert all("is in no file" in one["not_resumed"] and "model_values" not in one for one in found)
    claim(tmp_path, found[0])
    for again in (*found, identity_of(torch.nn.Linear(1, 1))):
        with pytest.raises(InvalidInput, match=r"is in no file.*; name a new output, or put the model .* into files"):
            claim(tmp_path, again)


def test_a_method_of_no_file_is_told_wherever_it_is(made):
    """In an instance, in a class, and by exec in the very module that has a file."""
    for where in ("net.forward", "Net.forward", "helper"):
        inside = made()
        space = vars(inside) if where == "helper" else {}
        exec("def typed(*given): return given[-1]", space)
        target, _, name = where.rpartition(".")
        setattr(getattr(inside, target) if target else inside, name, space["typed"])
        assert "function typed" in str(told(inside)["not_resumed"])
