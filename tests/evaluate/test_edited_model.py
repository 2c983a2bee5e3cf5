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
from PIL import Image

from attacks import PatchPGD
from evaluate import attack_vs_cert
from evaluate.model import identity
from evaluate.runs import runner
from robustpatch.errors import InvalidInput
from tests.evaluate.calls import call, refused
from tests.evaluate.small_runs import run

ROOT = Path(__file__).parents[2]
MODEL = """
import torch
from helper import score
from dataclasses import replace
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
LIE = "return replace(super().certify(x, PatchThreat(1, 1), method), threat=threat)"
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
    for name in ("mine", "helper"):  # of another test
        monkeypatch.delitem(sys.modules, name, raising=False)
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
    refused(result, f"model_files: {EDITS[what][0]}")
    assert ("model_values" in result.stderr) == (what in ("constant", "certify"))  # another name, another number
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
    monkeypatch.setattr(identity, "files_of", lambda *_: {})
    monkeypatch.setattr(identity, "hash_state", lambda *_, **__: ("", set()))
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
    again = call("--model", "mine.py:defended", "--replay", file)
    assert again.exit_code == 1, again.output
    assert "changed since" not in again.output
    (mine / "mine.py").write_text(MODEL)
    forget(mine)
    mended = call("--model", "mine.py:defended", "--replay", file)
    assert mended.exit_code == 0, mended.output
    assert "was saved: mine.py; this is of the model as it is now" in mended.output


def test_old_records_without_the_code_are_refused_and_those_of_checkpoints_are_not(mine, checkpoint):
    """A run.json from before the code was noted says nothing of it; of a checkpoint there is no file to note."""
    assert command("--output", "out").exit_code == 0
    note = json.loads((mine / "out" / "run.json").read_text())
    for key in ("model_files", "model_values"):
        del note[key]
    (mine / "out" / "run.json").write_text(json.dumps(note))
    refused(command("--output", "out"), "model_files, which that run has none of")
    given = ("--checkpoint", checkpoint, "--attacks", "none", "--num-images", 2, "--output", "toy")
    assert call(*given).exit_code == 0
    assert json.loads((mine / "toy" / "run.json").read_text())["model_files"] == {}
    assert call(*given).exit_code == 0


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
    with pytest.raises(InvalidInput, match=r"other attacks_values\)"):
        run(tmp_path, attacks=(attack(100),))
