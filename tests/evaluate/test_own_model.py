"""A newcomer's own module and own folder of images; the guide's example, run as it stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluate.runs.records import read_records
from tests.evaluate.calls import call, refused

ROOT = Path(__file__).parents[2]
MODULE = """
import torch

class Mean(torch.nn.Module):
    def __init__(self, outputs=2):
        super().__init__()
        self.outputs = outputs
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        light = self.scale * x.mean(dim=(1, 2, 3)) - 0.5
        return torch.stack([light, -light] + [light - 9] * (self.outputs - 2), dim=1)

net = Mean()
class Lost(Mean):
    def forward(self, x): return super().forward(x) / 0 * 0
lost = Lost()
make = Mean
def three(): return Mean(3)
def short(): return torch.nn.Flatten()
def flat(): return torch.nn.Linear(12, 2)
from robustpatch import Columns, SmoothedClassifier
class Three(torch.nn.Module):
    def forward(self, x): return torch.nn.functional.conv2d(x, torch.zeros(2, 3, 1, 1)).mean(dim=(2, 3))
base_of_3_channels = SmoothedClassifier(Three(), Columns(2), num_classes=2)
text = "no module"
class inner: net = Mean()
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """mine.py, and photos/CLASS/N.png of several sizes: light ones and dark ones."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MODULE)
    for name, level in (("light", 140), ("night", 60)):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(3):
            pixels = np.full((20 + number, 24, 3), level + 10 * number, np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path


FOLDER = ("--dataset", "folder", "--data-root", "photos", "--image-size", "12x14")
QUICK = ("--attacks", "grey,pgd:1", "--steps", 5, "--patch", "6x6")


@pytest.mark.parametrize("name", ["net", "make", "inner.net"])
def test_a_module_of_ones_own(name, mine):
    """Instance or function: clean accuracy, accuracy under attack, and a run that is repeated by its run.toml."""
    result = call("--model", f"mine.py:{name}", *FOLDER, *QUICK, "--output", "out")
    assert result.exit_code == 0, result.output
    assert "NO CERTIFICATE" in result.stdout
    summary = json.loads((mine / "out" / "summary.json").read_text())
    assert summary["clean"]["value"] == 1
    assert summary["under_all"]["value"] < 1
    assert summary["configuration"]["model"] == f"mine.py:{name}"
    assert summary["configuration"]["num_images"] == 6
    assert call("--config", "out/run.toml").exit_code == 0


def test_names_of_classes(mine):
    """In the order of the outputs, from a list or a file; the other way round, everything is wrong."""
    (mine / "names.txt").write_text("night\nlight\n")
    for names, clean in (("light,night", 1), ("names.txt", 0)):
        result = call("--model", "mine.py:net", *FOLDER, "--attacks", "none", "--classes", names, "--output", names[:3])
        assert result.exit_code == 0, result.output
        assert json.loads((mine / names[:3] / "summary.json").read_text())["clean"]["value"] == clean
    result = call("--model", "mine.py:three", *FOLDER, "--attacks", "none", "--classes", "light,night,fog")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("mine.py", (), "use FILE.py:NAME or PACKAGE.MODULE:NAME"),
        ("other.py:net", (), "there is no file other.py"),
        ("mine.py:nothing", (), "has no nothing; it has Columns, Lost, Mean, SmoothedClassifier"),
        ("no.such.module:net", (), "there is no module no"),
        ("mine.py:text", (), "a str; name a torch.nn.Module"),
        ("mine.py:three", (), "has 3 outputs, but folder has 2 classes; name those of the outputs, in order"),
        ("mine.py:short", (), "has 504 outputs"),
        ("mine.py:flat", (), "fails on folder's images, (2, 3, 12, 14)"),
        ("mine.py:base_of_3_channels", (), "its base sees encoded images, by default of 2C channels"),
        ("mine.py:lost", (), "model mine.py:lost: outputs contain NaN"),
        ("mine.py:net", ("--theta", 0.2), "theta is 0.2, which is for checkpoints"),
        ("mine.py:net", ("--voting", "scores"), "voting is scores, which is for checkpoints"),
        ("mine.py:net", ("--classes", "light,day"), "not night, folders of photos"),
        ("mine.py:net", ("--classes", "nowhere"), "which is no list a,b,c and no text file"),
        ("mine.py:net", ("--image-size", "12x"), "image_size is '12x'; use 224 or 224x320"),
        ("mine.py:net", ("--channels", 2), "channels is 2; images are read in colour (3) or in grey (1)"),
    ],
)
def test_wrong_calls(name, more, message, mine):
    """What is wrong, and what to do, before anything is scored."""
    refused(call("--model", name, *FOLDER, *more), message)


def test_images_of_several_sizes_need_one(mine):
    """Without --image-size the odd one is named."""
    result = call("--model", "mine.py:net", *FOLDER[:4], "--attacks", "none", "--num-images", 6)
    refused(result, "bring all to one size with --image-size")


def test_the_guide_s_example(mine):
    """The commands and the file under "Your own model" do what the text says, on a folder such as it speaks of. Records
    and report name the photographs."""
    section = (ROOT / "docs" / "guides" / "models.md").read_text().split("\n## ")[0]
    code, *commands = re.findall(r"```\w+\n(.*?)```", section, flags=re.S)
    (mine / "mine.py").write_text(code)
    lines = [line for block in commands for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    assert lines
    for number, line in enumerate(lines):
        program, *arguments = line.split("#")[0].split()
        assert (program, arguments[:2]) == ("python", ["-m", "evaluate.attack_vs_cert"])
        result = call(*arguments[2:], "--attacks", "pgd:1", "--steps", 2, "--output", f"out{number}")
        assert result.exit_code == 0, result.output
        assert ("HELD" if number else "NO CERTIFICATE") in result.stdout
        assert [record.file for record in read_records(f"out{number}")][2:4] == ["light/1.png", "night/1.png"]
        assert all("light/2.png" in Path(f"out{number}", f"report.{kind}").read_text() for kind in ("html", "md"))
