"""Code of a user's own, by FILE.py:NAME: attacks, ablations, and certifiers that are no torch.nn.Module."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from attacks import parse_attacks
from evaluate import evaluate
from robustpatch import InvalidInput
from robustpatch.ablations.parse import READERS, parse_ablation
from robustpatch.checkpoints import load_checkpoint
from robustpatch.cli.own_ablation import own_ablation
from robustpatch.networks import usual_name
from robustpatch.train import app as train
from tests.evaluate.calls import call, refused
from tests.evaluate.commands import draw_images
from tests.evaluate.sweeps import SIZE, make

ROOT = Path(__file__).parents[2]
BRIGHT = """
from types import SimpleNamespace
import numpy as np
import torch

class Bright:
    num_classes = 3
    def predict(self, x):
        return (x.mean(axis=(1, 2, 3)) > 0.5).astype(int)
    def certify(self, x, threat):
        light = x.mean(axis=(1, 2, 3))
        return SimpleNamespace(prediction=self.predict(x), certified=np.abs(light - 0.5) > 0.3)

class InTorch(Bright):
    def predict(self, x):
        return (x.mean(dim=(1, 2, 3)) > 0.5).long()
    def certify(self, x, threat):
        return SimpleNamespace(prediction=self.predict(x), certified=(x.mean(dim=(1, 2, 3)) - 0.5).abs() > 0.3)

class Broken:
    def predict(self, x):
        raise KeyError("of its own")
"""


@pytest.fixture
def readers():
    """What was added to the readers of ablations is gone afterwards."""
    before = list(READERS)
    yield
    READERS[:] = before


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The tutorials' attack and the guide's ablation, each in a file."""
    monkeypatch.chdir(tmp_path)
    attack = re.search(r"@dataclass.*?\n\n\n", (ROOT / "docs/tutorials/attack.md").read_text(), flags=re.S)
    head = "from dataclasses import dataclass\nfrom typing import ClassVar\nimport torch\n"
    head += "from robustpatch import Ablation\nfrom robustpatch.attacks import Proposal\n"
    Path("white.py").write_text(f"{head}{attack[0]}few = White(3)\nnone = 1\n")
    ablation = re.search(r"@dataclass.*?\n\n\n", (ROOT / "docs/guides/extending.md").read_text(), flags=re.S)
    Path("cells.py").write_text(f"{head}{ablation[0]}five = Diagonals(5)\none = 1\n")
    Path("bright.py").write_text(BRIGHT)
    make(Path("toy.safetensors"), channels=3)
    return tmp_path


def on_toy(*more: object):
    images = ("--checkpoint", "toy.safetensors", "--dataset", "folder", "--data-root", "images")
    return call(*images, "--patch", "2x2", "--num-images", 3, "--output", "out", *more)


def test_an_attack_of_one_s_own(mine):
    """As an object, beside others; in the run's records, and in run.toml, which repeats the run."""
    draw_images(Path("images"), test=1)
    result = on_toy("--attacks", "white.py:few,grey:2", "--budget", 7)
    assert result.exit_code == 0, result.output
    attacks = json.loads(Path("out/run.json").read_text())["attacks"]
    assert [attacks[0], attacks[1].partition("(")[0]] == ["White(tries=3, budget=7)", "Control"]
    assert 'attacks = "white.py:few,grey:2"' in Path("out/run.toml").read_text()


def test_what_is_no_attack_is_refused_and_code_is_named_on_the_command_line_alone(mine):
    refused(call("--attacks", "white.py:none"), "a int without name, touched_only")
    refused(call("--attacks", "white.py:Whit"), "white.py has no Whit; it has ")
    refused(call("--attacks", "gone.py:White"), "there is no file gone.py")
    with pytest.raises(InvalidInput, match="code of your own; name it on the command line"):
        parse_attacks("white.py:White")


def test_an_ablation_s_text_is_read_once_it_was_named(mine, readers):
    """And its usual network is one that sees any view."""
    assert own_ablation("columns:2") == "columns:2"
    with pytest.raises(InvalidInput, match="ablation is 'diagonals:5'; use"):
        parse_ablation("diagonals:5")
    assert own_ablation("cells.py:five") == "diagonals:5"
    assert usual_name(parse_ablation("diagonals:5")) == "small-cnn"
    assert parse_ablation("columns:2 + diagonals:5").count(*SIZE) == SIZE[1] + 5
    with pytest.raises(InvalidInput, match="a int; name an object of a class derived from"):
        own_ablation("cells.py:one")


@pytest.mark.slow
def test_an_ablation_of_one_s_own(mine, readers):
    """Trained, certified by its checkpoint where the option names it again, and not where it does not."""
    draw_images(Path("images"), train=4, validation=1, test=1)
    options = ("--dataset", "folder", "--data-root", "images", "--patch", "2x2", "--epochs", "1", "--batch-size", "8")
    trained = CliRunner().invoke(train, ["--ablation", "cells.py:five", *options, "--output", "trained"])
    assert trained.exit_code == 0, trained.output
    READERS.pop()
    checkpoint = "trained/checkpoint.safetensors"
    with pytest.raises(InvalidInput, match="ablation is 'diagonals:5'; use"):
        load_checkpoint(checkpoint)
    result = on_toy("--checkpoint", checkpoint, "--ablation", "cells.py:five", "--attacks", "none")
    assert result.exit_code == 0, result.output
    assert 'ablation = "cells.py:five"' in Path("out/run.toml").read_text()
    refused(on_toy("--ablation", "cells.py:one"), "a int; name an object of a class derived from robustpatch.Ablation")


@pytest.mark.parametrize("name", ["Bright", "InTorch"])
def test_a_certifier_that_is_no_module(name, mine):
    """On the command line and in Python; in numpy or torch, whichever it takes."""
    draw_images(Path("images"), test=1)
    result = call(
        *("--model", f"bright.py:{name}", "--dataset", "folder", "--data-root", "images", "--attacks", "sparse-rs:5"),
        *("--patch", "1x1", "--num-images", 3, "--output", "out"),
    )
    assert result.exit_code == 0, result.output
    from bright import Bright

    x = torch.stack([torch.full((1, *SIZE), value) for value in (0.1, 0.45, 0.9)])
    records = evaluate(Bright(), (x, torch.tensor([0, 0, 1])), "1x1", "sparse-rs:5")
    assert [record.certified for record in records] == [True, False, True]


def test_its_own_errors_come_through(mine):
    result = call("--model", "bright.py:Broken", "--num-images", 1, "--attacks", "none")
    assert "KeyError: 'of its own'" in result.output
