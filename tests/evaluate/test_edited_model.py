"""A model that is edited is another run, whatever its weights: no record of the old one is taken for its own."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attacks import PatchPGD
from evaluate import Settings, attack_vs_cert, claim, evaluate, recheck, runner, subject
from evaluate.recheck import Recheck
from evaluate.source import code_of
from robustpatch.ablation import Columns
from robustpatch.defenses import parse_defense
from robustpatch.errors import InvalidInput
from robustpatch.randomized import RandomizedClassifier
from robustpatch.sampling import Sampling
from robustpatch.sparse import SparseAblation
from robustpatch.threat import PatchThreat
from robustpatch.voting import TopOne, parse_voting
from tests.attacks.toys import Level, Plain, images, smoothed, strip
from tests.evaluate.calls import call, refused
from tests.evaluate.planted import image_set
from tests.evaluate.runs import run

ROOT = Path(__file__).parents[2]
MODEL = """
import torch
from helper import score
from robustpatch import Columns, SmoothedClassifier, PatchThreat

class Base(torch.nn.Module):
    def forward(self, encoded):
        kept, complement = encoded.chunk(2, dim=1)
        return score(0.5 + (kept - complement) / 2)

class Mine(SmoothedClassifier):
    def certify(self, x, threat, method="exact"):
        return super().certify(x, threat, method)

defended = Mine(Base(), Columns(2), num_classes=2)
"""
HELPER = """
import torch
GAIN = 9.0
def score(x):
    light = GAIN * (x - 0.5).flatten(1).sum(dim=1) / x.shape[2]
    return torch.stack([-light, light], dim=1)
"""
LIE = "return super().certify(x, PatchThreat(1, 1), method)"
EDITS = {
    "certify": ("mine.py", "return super().certify(x, threat, method)", LIE),
    "forward": ("mine.py", "(kept - complement) / 2", "(complement - kept) / 2"),
    "helper": ("helper.py", "[-light, light]", "[light, -light]"),
    "constant": ("helper.py", "GAIN = 9.0", "GAIN = 0.0"),
    "comment": ("mine.py", "\ndefended", "\n# a comment\ndefended"),
}
QUICK = ("--attacks", "pgd:1", "--steps", 3, "--patch", "6x6", "--num-images", 6, "--gallery", 0)
FOLDER = ("--dataset", "folder", "--data-root", "photos", "--image-size", "12x14")


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """mine.py, helper.py and photos of two classes; `edit` as in EDITS, and what a new process would know of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(attack_vs_cert, "write_report", str)
    (tmp_path / "mine.py").write_text(MODEL)
    (tmp_path / "helper.py").write_text(HELPER)
    for name, level in (("dark", 120), ("light", 135)):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(3):
            Image.fromarray(np.full((12, 14, 3), level + number, np.uint8)).save(folder / f"{number}.png")
    yield tmp_path
    forget(tmp_path)


def forget(folder):
    """As if in a new process."""
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(folder)):
            del sys.modules[name]
    importlib.invalidate_caches()


def edit(folder, what):
    name, before, after = EDITS[what]
    text = (folder / name).read_text()
    assert before in text
    (folder / name).write_text(text.replace(before, after))
    forget(folder)


def command(*more, model="mine.py:defended"):
    return call("--model", model, *FOLDER, *QUICK, *more)


@pytest.mark.parametrize("what", EDITS)
def test_an_edited_model_is_another_run(what, mine):
    """It has a default folder of its own; that of the old one refuses it, names what differs, and stays as it was."""
    assert command().exit_code == 0
    (old,) = (mine / "runs").iterdir()
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    edit(mine, what)
    result = command("--output", old)
    refused(result, f"model_files: {EDITS[what][0]})")
    assert ("model_code" in result.stderr) == (what != "comment")
    assert "name another output, or repeat that run's options, model and code" in result.stderr
    result = command()
    assert result.exit_code == (1 if what == "certify" else 0), result.output
    assert len(list((mine / "runs").iterdir())) == 2
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_model_that_is_as_it_was_resumes(mine, monkeypatch):
    """Nothing is done again in a new process; with another batch size it is another run, as ever."""
    assert command("--output", "out").exit_code == 0
    forget(mine)
    monkeypatch.setattr(runner, "evaluate_batch", None)
    assert command("--output", "out").exit_code == 0
    refused(command("--output", "out", "--batch-size", 4), "holds another run (other batch_size); name another output")


@pytest.mark.slow
def test_in_processes_of_their_own(mine):
    """As a user has it, under any hash seed: HELD, then a lie in `certify`, which the old folder has no room for."""

    def shell(seed):
        given = [sys.executable, "-m", "evaluate.attack_vs_cert", "--model", "mine.py:defended", *FOLDER, *QUICK]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(seed)}
        given += ["--output", "out", "--quiet"]
        return subprocess.run([str(one) for one in given], env=environment, capture_output=True, text=True)

    assert "HELD" in shell(1).stdout
    assert "HELD" in shell(2).stdout
    edit(mine, "certify")
    done = shell(3)
    assert (done.returncode, done.stdout) == (2, "")
    assert "model_files: mine.py" in done.stderr


@pytest.mark.parametrize(("what", "field"), [("certify", "margin_exact"), ("forward", "prediction")])
def test_an_edit_that_no_hash_sees_is_seen_in_the_records(what, field, mine, monkeypatch):
    """The few images asked again name the image, what its record says and what the model says, and the remedy."""
    monkeypatch.setattr(claim, "code_of", lambda *_: {})
    monkeypatch.setattr(subject, "files_of", lambda *_: {})
    assert command("--output", "out").exit_code == 0
    edit(mine, what)
    result = command("--output", "out")
    refused(result, f"output out has {field} ")
    assert re.search(r" of image \d, but the model at hand gives \S+: its code .*; name another output", result.stderr)


def test_a_counterexample_is_replayed_with_the_model_as_it_is(mine):
    """And the files that changed since are named: whoever mends a defense sees whether it is mended."""
    edit(mine, "certify")
    assert command("--output", "out").exit_code == 1
    file = sorted((mine / "out" / "counterexamples").iterdir())[0]
    again = call("--replay", file)
    assert again.exit_code == 1, again.output
    assert "changed since" not in again.output
    (mine / "mine.py").write_text(MODEL)
    forget(mine)
    mended = call("--replay", file)
    assert mended.exit_code == 0, mended.output
    assert "was saved: mine.py; this is of the model as it is now" in mended.output


def test_old_records_without_the_code_are_refused_and_those_of_checkpoints_are_not(mine, checkpoint):
    """A run.json from before the code was noted says nothing of it; a checkpoint's file does."""
    assert command("--output", "out").exit_code == 0
    note = json.loads((mine / "out" / "run.json").read_text())
    for key in ("model_files", "model_code"):
        del note[key]
    (mine / "out" / "run.json").write_text(json.dumps(note))
    refused(command("--output", "out"), "model_files, which that run has none of")
    given = ("--checkpoint", checkpoint, "--attacks", "none", "--num-images", 2, "--output", "toy")
    assert call(*given).exit_code == 0
    assert (
        not {"model_files", "model_code", "attacks_code"} & json.loads((mine / "toy" / "run.json").read_text()).keys()
    )


# One model in many versions: each line replaces another of it.
VERSIONS = """
import functools, torch
from torch import nn
EPS, TABLE, _CACHE = 0.5, [1, 2], {}
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
        return self.body(self.act(self.conv(x))) + len(_CACHE) + TABLE[0] * self.gain
net = Net().eval()
"""
CHANGES = [
    ("x * 2", "x * 3"),
    ("x * by", "x + by"),
    ("scaled(2)", "scaled(3)"),
    ("EPS, TABLE, _CACHE = 0.5", "EPS, TABLE, _CACHE = 0.25"),
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
]
SAME = [
    ("    gain = 1.0", "    # a comment\n\n    gain = 1.0"),
    ("_CACHE = 0.5, [1, 2], {}", "_CACHE = 0.5, [1, 2], {1: 2}"),
    ("net = Net().eval()", "net = Net().eval()\nnet._cache[0] = 1\nunrelated = 3"),
]


def version(change=None):
    """The model so changed, in a module of its own, as a notebook would have it."""
    text = VERSIONS if change is None else VERSIONS.replace(*change)
    assert (text != VERSIONS) == (change is not None)
    inside = {"__name__": "of_no_file"}
    exec(compile(text, "nowhere", "exec"), inside)
    return inside["net"]


@pytest.mark.parametrize("change", CHANGES, ids=[before for before, _ in CHANGES])
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


def test_what_a_model_does_leaves_it_the_same(tmp_path):
    """Scoring, certifying and the choice of a chunk change nothing of ours."""
    for model in (strip((4, 8)), sampled(Columns(2)), sampled(SparseAblation(3)), Plain(32).eval()):
        before = code_of(model)
        run_on(model, tmp_path / str(id(model)))
        assert code_of(model) == before


def test_attacks_of_ones_own_are_part_of_a_run(tmp_path):
    """Their text does not say what they do."""

    def attack(by):
        class Own(PatchPGD):
            def __repr__(self):
                return "Own()"

            def unpruned(self, budget):
                return replace(super().unpruned(by), steps=1)

        return Own(steps=1, restarts=1)

    run(tmp_path, attacks=(attack(1),))
    run(tmp_path, attacks=(attack(1),))
    with pytest.raises(InvalidInput, match=r"other attacks_code: .*Own\.unpruned\)"):
        run(tmp_path, attacks=(attack(100),))


def sampled(ablation):
    few = Sampling(5, 10, 5, alpha=0.5)
    return RandomizedClassifier(Level(3), ablation, num_classes=3, sampling=few, voting=TopOne(1e-6)).eval()


def pictures():
    return image_set(images(10, (4, 8)), torch.arange(10) % 3, 3)


def run_on(model, output, **settings):
    chosen = Settings(**{"num_images": 10, "batch_size": 5, "gallery": 0, **settings})
    return evaluate(model, pictures(), PatchThreat(2, 2), (), chosen, output)


MODELS = {
    "strip": lambda: strip((4, 8)),
    "level": lambda: smoothed(Level(3), Columns(1), 3),
    "sampled": lambda: sampled(Columns(2)),
    "sparse": lambda: sampled(SparseAblation(3)),
    "plain": lambda: Plain(32).eval(),
    "patchguard": lambda: parse_defense("patchguard:window=2x2").wrap(strip((4, 8)), num_classes=3).eval(),
    "scores": lambda: with_voting(strip((4, 8)), "scores"),
}


def with_voting(model, text):
    model.voting = parse_voting(text, None)
    return model


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("size", [1, 3, 10])
def test_records_of_batches_of_any_size_are_those_of_the_model(kind, size, tmp_path):
    """Those of other batches are confirmed, and those of another model are not, by whatever model."""
    records = run_on(MODELS[kind](), tmp_path, batch_size=size)
    again = Recheck(MODELS[kind](), pictures(), PatchThreat(2, 2), Settings(10))
    again.check([(range(10), records)], "out")
    for field in ("prediction", "certified_exact"):
        if getattr(records[2], field) is not None:
            wrong = {"prediction": (records[2].prediction + 1) % 3, "certified_exact": not records[2].certified_exact}
            forged = [*records[:2], replace(records[2], **{field: wrong[field]}), *records[3:]]
            with pytest.raises(
                InvalidInput, match=f"output out has {field} .* of image 2, but the model at hand gives"
            ):
                again.check([(range(10), forged)], "out")


def test_votes_that_rounding_may_turn_over_are_forgiven_and_no_others(tmp_path):
    """A margin may be another by two for each vote within twice the guard; the prediction, by as narrow a lead."""
    model = smoothed(Level(2), Columns(1), 2)
    x = torch.zeros(2, 1, 4, 8)
    x[:, :, :, 0] = 128 / 255  # nearly as far from one level as from the other
    near = smoothed(Level(2), Columns(1), 2, TopOne(0.05))
    data = image_set(x, torch.zeros(2, dtype=torch.long), 2)
    for one, loose in ((model, 0), (near, 2)):
        records = evaluate(one, data, PatchThreat(2, 2), (), Settings(2), tmp_path / str(loose))
        again = Recheck(one, data, PatchThreat(2, 2), Settings(2))
        assert again._loose(one, 0) == 2 * loose
        for by in (-5, -4, -1, 1, 4, 5):
            forged = [replace(records[0], margin_exact=records[0].margin_exact + by), records[1]]
            if abs(by) <= 2 * loose:
                again.check([(range(2), forged)], "out")
            else:
                with pytest.raises(InvalidInput, match="margin_exact"):
                    again.check([(range(2), forged)], "out")


class Torn(torch.nn.Module):
    """Undefended: of grey images its two outputs are equal but for the order in which they are summed."""

    def forward(self, x):
        light = x.flatten(1).sum(dim=1) - 0.5 * x[0].numel()
        return torch.stack([light, -light], dim=1)


def test_an_answer_that_a_trace_of_noise_changes_is_forgiven(tmp_path):
    """Without votes: the grey image may have been of either class, the white one may not."""
    x = torch.ones(2, 1, 4, 8)
    x[0, :, :, ::2], x[0, :, :, 1::2] = 127 / 255, 128 / 255
    data = image_set(x, torch.zeros(2, dtype=torch.long), 2)
    records = evaluate(Torn().eval(), data, PatchThreat(2, 2), (), Settings(2), tmp_path)
    again = Recheck(Torn().eval(), data, PatchThreat(2, 2), Settings(2))
    for i, known in ((0, False), (1, True)):
        forged = [replace(one, prediction=1 - one.prediction) if one.index == i else one for one in records]
        if known:
            with pytest.raises(InvalidInput, match="prediction 1 of image 1"):
                again.check([(range(2), forged)], "out")
        else:
            again.check([(range(2), forged)], "out")


def test_a_few_images_are_asked_and_no_more(tmp_path, monkeypatch):
    """Eight, of as many batches as that takes, and before anything else is done."""
    asked = []
    original = recheck.evaluate_batch

    def batch(model, x, *rest):
        asked.append(len(x))
        return original(model, x, *rest)

    monkeypatch.setattr(recheck, "evaluate_batch", batch)
    run_on(strip((4, 8)), tmp_path / "a")
    assert asked == []
    run_on(strip((4, 8)), tmp_path / "a")
    assert asked == [1, 4, 1, 2]
    asked.clear()
    monkeypatch.setattr(recheck, "_SECONDS", 0.0)
    run_on(strip((4, 8)), tmp_path / "a")
    assert asked == [1]
