"""Resumed runs that an adversary brought to a false HELD: each change that matters is another run, or is seen."""

from __future__ import annotations

import importlib
import io
import json
import sys
import types
from collections import defaultdict, deque
from enum import Enum
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

from attacks import SparseRS
from evaluate import Settings, evaluate
from evaluate.model import identity
from evaluate.model.identity import identity_of
from evaluate.model.state_hash import NoFile, hash_state
from evaluate.runs import run_identity
from robustpatch.certificates.exact import Certificate
from robustpatch.data.images import load_images
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from tests.evaluate.planted import image_set
from tests.evaluate.small_runs import evaluated

ATTACKS = (SparseRS(queries=20),)


def code_of(*held):
    return hash_state(held)[0]


class Rule(nn.Module):
    """Class 1 where a pixel exceeds `limit()`; claims that no pixel changes that of dark images, which holds at 2."""

    num_classes = 2

    def __init__(self, kept=None):
        super().__init__()
        self.kept = kept

    def limit(self):
        return self.kept

    def forward(self, x):
        light = torch.sigmoid(200 * (x.amax((1, 2, 3)) - self.limit()))
        return torch.stack([1 - light, light], dim=1)

    def predict(self, x):
        return self(x).argmax(dim=1)

    def certify(self, x, threat):
        prediction = self.predict(x)
        return Certificate(prediction, x.amax((1, 2, 3)) < 0.5, None, None, threat, "exact", 0.0, 0 * prediction)


def photos():
    """Two that are too light to be certified, and two dark ones."""
    x = torch.full((4, 1, 3, 3), 0.1)
    x[:2] = 0.7
    return image_set(x, torch.zeros(4, dtype=torch.long), 2)


def run(model, output, attacks=ATTACKS, **more):
    return evaluated(model, output, attacks, data=photos(), threat=PatchThreat(1, 1), **more)


def broken(records):
    return any(record.violations for record in records)


@pytest.mark.parametrize(
    "key", ["attacks", "seed", "threat", "model_sha256", "model_files", "model_values", "attacks_values", "left_out"]
)
def test_a_note_takes_no_key_that_tells_runs_apart(key, tmp_path):
    """Else two runs with that note would be one, whatever their attacks and models are."""
    with pytest.raises(InvalidInput, match=f"configuration has the key {key}, .*; rename it"):
        run(Rule(2.0), tmp_path, configuration={"comment": "nightly", key: "mine"})
    assert not list(tmp_path.iterdir())


def test_no_note_leaves_the_code_out(tmp_path):
    """Not even one that names a checkpoint, nor a module that is said to have made the model."""
    for name, more in (("a", {}), ("b", {"module": "attacks"})):
        note = {"checkpoint_sha256": "abc"}
        assert not broken(run(Rule(2.0), tmp_path / name, configuration=note, **more))
        with pytest.raises(InvalidInput, match="holds another run"):
            run(Rule(0.8), tmp_path / name, configuration=note, **more)
    assert broken(run(Rule(0.8), tmp_path / "c"))


_config = {"limit": 2.0}


class Table(Rule):
    """A private table looks like a cache, and is left out."""

    def limit(self):
        return _config["limit"]


class OfFile(Rule):
    def limit(self):
        return float(Path(str(self.kept)).read_text())


class Listed(Rule):
    def __init__(self, kept):
        super().__init__()
        self._kept = [kept]

    def limit(self):
        return self._kept[0]


def made(kind, limit, folder):
    if kind is Table:
        _config["limit"] = limit
        return Table()
    if kind is OfFile:
        (folder / "limit.txt").write_text(str(limit))
        return OfFile(str(folder / "limit.txt"))
    return kind(limit)


@pytest.mark.parametrize("kind", [Table, OfFile, Listed])
def test_answers_under_a_patch_are_asked_again(kind, tmp_path):
    """What no hash sees of a model, and no clean image: a run goes on with the same model, not with another."""
    assert not broken(run(made(kind, 2.0, tmp_path), tmp_path / "a"))
    assert not broken(run(made(kind, 2.0, tmp_path), tmp_path / "a"))
    with pytest.raises(InvalidInput, match=r"prediction 0 of image \d under a patch, but the model at hand gives 1"):
        run(made(kind, 0.8, tmp_path), tmp_path / "a")
    assert broken(run(made(kind, 0.8, tmp_path), tmp_path / "b"))


class Mine:
    """An attack of the user's own, whose setting is private and not in its text."""

    name, touched_only = "mine", False

    def __init__(self, queries):
        self._queries = [queries]

    def __repr__(self):
        return "Mine()"

    def unpruned(self, budget):
        return self

    def check(self, threat):
        pass

    def __call__(self, model, x, y, threat, *, generator):
        search = SparseRS(queries=self._queries[0]).unpruned(None)
        return search(model, x, y, threat, generator=generator)


class Corner(Rule):
    def forward(self, x):
        light = (x[:, 0, 0, 0] > 0.9).float() + 0 * x.sum((1, 2, 3))
        return torch.stack([1 - light, light], dim=1)


def test_private_settings_of_an_attack_are_told(tmp_path):
    """Lists too: a stronger attack must not go on with what a weaker one found."""
    assert not broken(run(Corner(), tmp_path / "a", [Mine(1)]))
    run(Corner(), tmp_path / "a", [Mine(1)])
    with pytest.raises(InvalidInput, match="other attacks_values"):
        run(Corner(), tmp_path / "a", [Mine(200)])
    assert broken(run(Corner(), tmp_path / "b", [Mine(200)]))


class Slots:
    __slots__ = ("limit",)

    def __init__(self, limit):
        self.limit = limit


class Own(deque):
    """A container of the user's own, from a library's."""


class Number(float):
    def __float__(self):
        return 2.0


class Other(float):
    def __float__(self):
        return 0.8


def function(limit):
    def threshold():
        return vars(threshold)["limit"]

    vars(threshold)["limit"] = limit
    return threshold


def module(limit):
    made = types.ModuleType("settings_of_a_user")
    vars(made)["limit"] = limit
    return made


def parameter(limit):
    made = nn.Parameter(torch.zeros(1))
    vars(made)["limit"] = limit
    return made


VALUES = {
    "a member of an Enum": lambda limit: Enum("Level", {"HIGH": limit}).HIGH,
    "slots": Slots,
    "an attribute of a function": function,
    "a method of a table": lambda limit: {"limit": limit}.get,
    "a sparse tensor": lambda limit: torch.tensor([limit, 0.0]).to_sparse(),
    "a sparse tensor in rows": lambda limit: torch.tensor([[limit, 0.0]]).to_sparse_csr(),
    "a quantized tensor": lambda limit: torch.quantize_per_tensor(torch.tensor([limit]), 0.1, 0, torch.quint8),
    "a deque of one's own": lambda limit: Own([limit]),
    "a number of one's own": lambda limit: {2.0: Number, 0.8: Other}[limit](1.0),
    "the default of a table": lambda limit: defaultdict({2.0: Number, 0.8: Other}[limit]),
    "an attribute of a tensor": parameter,
    "a function of torch": lambda limit: {2.0: torch.relu, 0.8: torch.tanh}[limit],
    "a layout": lambda limit: {2.0: torch.contiguous_format, 0.8: torch.channels_last}[limit],
}


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:.*quantiz")
@pytest.mark.parametrize("kind", VALUES)
def test_values_of_all_kinds_tell_models_apart(kind):
    """Two that differ are two models, two that are equal one."""
    make = VALUES[kind]
    assert code_of(Rule(make(2.0))) != code_of(Rule(make(0.8)))
    assert code_of(Rule(make(2.0))) == code_of(Rule(make(2.0)))


def test_a_module_of_no_file_is_told_by_nothing():
    """What it defines was typed in, or made."""
    with pytest.raises(NoFile, match="module settings_of_a_user is in no file"):
        code_of(Rule(module(2.0)))


class Scripted(nn.Module):
    def __init__(self, limit: float):
        super().__init__()
        self.limit = limit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - self.limit


class Constant(nn.Module):
    def __init__(self, limit: float):
        super().__init__()
        self.limit = torch.full((1, 1, 3, 3), limit)

    def forward(self, x):
        return x - self.limit


def loaded(limit):
    saved = io.BytesIO(torch.jit.script(Scripted(limit)).save_to_buffer())
    return torch.jit.load(saved)


SCRIPTS = {
    "scripted": lambda limit: torch.jit.script(Scripted(limit)),
    "loaded": loaded,
    "traced": lambda limit: torch.jit.trace(Constant(limit).eval(), torch.zeros(1, 1, 3, 3)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("kind", SCRIPTS)
def test_parts_in_torchscript_are_told_by_what_they_hold(kind):
    """Numbers and constants that are no attributes of the Python object; equal ones are one model still."""
    for around in (nn.Identity, nn.Sequential):
        two, other, again = (around(SCRIPTS[kind](limit)) for limit in (2.0, 0.8, 2.0))
        if around is nn.Identity:
            two, other, again = (SCRIPTS[kind](limit) for limit in (2.0, 0.8, 2.0))
        assert code_of(two) != code_of(other)
        assert code_of(two) == code_of(again)


class Lazy(Rule):
    def limit(self):
        from limits_of_a_user import LIMIT  # pyright: ignore[reportMissingImports]

        return LIMIT


@pytest.mark.parametrize("through", [False, True])
def test_a_module_imported_in_a_method_is_part_of_the_model(through, tmp_path, monkeypatch):
    """By its file, and those that it imports; whether it is loaded yet is no matter."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    inner = tmp_path / ("inner_limits_of_a_user.py" if through else "limits_of_a_user.py")
    if through:
        (tmp_path / "limits_of_a_user.py").write_text("from inner_limits_of_a_user import LIMIT\n")

    def version(limit):
        inner.write_text(f"LIMIT = {limit}\n")
        for name in ("limits_of_a_user", "inner_limits_of_a_user"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        model = Lazy()
        before = identity_of(model)
        assert model.limit() == limit
        assert identity_of(model) == before
        return before

    assert version(2.0) != version(0.8)
    assert version(2.0) == version(2.0)


def test_what_attacks_of_this_package_hold_is_noted(tmp_path):
    """Their text abbreviates long arrays, and no code of the user's need be in them."""
    run(Rule(2.0), tmp_path)
    noted = json.loads((tmp_path / "run.json").read_text())
    assert noted["attacks_values"] == hash_state(ATTACKS, caches=True)[0] != hash_state([SparseRS(queries=21)])[0]
    assert noted["attacks_files"] == {}


def test_code_of_this_package_and_versions_of_others_tell_runs_apart(tmp_path, monkeypatch):
    """A working copy may change under one version, and an upgraded package under one name."""
    run(Rule(2.0), tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(run_identity, "package_code", lambda: "another")
        with pytest.raises(InvalidInput, match="another run \\(other code\\)"):
            run(Rule(2.0), tmp_path)
    monkeypatch.setattr(identity, "version", lambda _: "0.0.1")
    with pytest.raises(InvalidInput, match="other packages: numpy torch"):
        run(Rule(2.0), tmp_path)


def test_packages_are_those_that_classes_come_from():
    class Derived(PIL.Image.Image):
        pass

    assert identity.packages(Rule(2.0)).keys() == {"numpy", "torch"}
    assert {name.lower() for name in identity.packages(Rule(2.0), Derived())} == {"numpy", "torch", "pillow"}


def test_a_method_that_the_user_put_into_a_class_of_a_library_is_told(monkeypatch):
    """The class is told by its name otherwise."""
    model = nn.Sequential(nn.Hardtanh())
    before = code_of(model)
    monkeypatch.setattr(nn.Hardtanh, "forward", lambda self, x: x)
    after = code_of(model)
    assert after != before
    monkeypatch.setattr(nn.Hardtanh, "forward", lambda self, x: -x)
    assert code_of(model) not in (before, after)


def test_a_file_that_changed_since_it_was_read_is_refused(tmp_path):
    """Else the identity of the run would be of the new file, and its records of the old one."""
    for name in ("0", "1"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        PIL.Image.fromarray(np.full((4, 4), 30, np.uint8)).save(tmp_path / "photos" / name / "a.png")
    data = load_images("folder", tmp_path / "photos", channels=1)
    data.batch(range(2))
    changed = tmp_path / "photos" / "1" / "a.png"
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 99, (4, 4)).astype(np.uint8)).save(changed)
    with pytest.raises(InvalidInput, match=r"a\.png was written since it was first read; load the images anew"):
        evaluate(Rule(2.0).eval(), data, PatchThreat(1, 1), ATTACKS, Settings(2, gallery=0), tmp_path / "out")


def test_functions_and_classes_of_one_name_that_change_places_are_told():
    """Each by all that it is, where it stands."""

    def closure(limit):
        def rule():
            return limit

        return rule

    def kind(limit):
        class Kept:
            bound = limit

        return Kept()

    for make in (closure, kind):
        one, other = make(2.0), make(0.8)
        assert code_of(Rule([one, other])) != code_of(Rule([other, one]))
        assert code_of(Rule([one, other])) == code_of(Rule([make(2.0), make(0.8)]))
