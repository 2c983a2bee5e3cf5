"""Models of users in other shapes: TorchScript, files of weights, tied weights, files inside packages."""

from __future__ import annotations

import warnings

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from evaluate.audit.__main__ import app as audit
from evaluate.sweep.__main__ import app as sweep
from tests.evaluate.calls import call, refused

PARTS = "from torch import nn\n\n\ndef head():\n    return nn.Linear(192, 2)\n"
RELATIVE = "from torch import nn\nfrom .parts import head\nmake = lambda: nn.Sequential(nn.Flatten(), head())\n"
MODELS = """import torch
from torch import nn


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(192, 192), nn.Linear(192, 192), nn.Linear(192, 2)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.c(self.b(self.a(x.flatten(1))))


def normed():
    return nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(192, 2)))


def script():
    return torch.jit.load("scripted.pt")
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, level in (("a", 30), ("b", 220)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(2):
            Image.new("RGB", (8, 8), (level, level, k)).save(tmp_path / "photos" / name / f"{k}.png")
    (tmp_path / "outer_of_17" / "inner").mkdir(parents=True)
    for folder in ("outer_of_17", "outer_of_17/inner"):
        (tmp_path / folder / "__init__.py").write_text("")
    (tmp_path / "outer_of_17" / "inner" / "parts.py").write_text(PARTS)
    (tmp_path / "outer_of_17" / "inner" / "relative.py").write_text(RELATIVE)
    (tmp_path / "models_of_17.py").write_text(MODELS)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and still what many have
        torch.jit.trace(net, torch.zeros(1, 3, 8, 8)).save("scripted.pt")
    return tmp_path


GIVEN = ("--dataset", "folder", "--data-root", "photos", "--patch", "1x1", "--attacks", "grey", "--batch-size", 1)


@pytest.mark.parametrize(
    "name",
    [
        "scripted.pt",
        "models_of_17.py:Tied",
        "models_of_17.py:normed",
        "models_of_17.py:script",
        "outer_of_17/inner/relative.py:make",
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_models_of_other_shapes(name, mine):
    """One image at a time."""
    done = call("--model", name, *GIVEN, "--output", "out")
    assert done.exit_code == 0, done.output


@pytest.mark.usefixtures("mine")
def test_files_of_weights():
    done = call("--model", "net.pth:net", *GIVEN, "--output", "out")
    refused(done, "a file of weights, which names no network to run; write")


NOWHERE = {
    "too long": "x" * 300 + ".py:net",
    "too long a path": "x/" * 3_000 + "a.py:net",
    "a loop": "loop.py:net",
    "nobody's home": "~nobody_of_17/a.py:net",
    "NUL": "\0.py:net",
    "a NUL in a module": "a\0b:net",
    "a folder": "photos.py:net",
    "relative": "..mine:net",
    "dots": "...:net",
    "empty parts": "a..b:net",
    "a long module": "x" * 300 + ":net",
    "a surrogate": "\udcff.py:net",
    "too long to be a file": "9" * 400,
}


@pytest.mark.parametrize("name", NOWHERE)
def test_names_of_no_module(name, mine):
    """One line in each command that takes such a name, by whatever the system says that there is no such file."""
    (mine / "loop.py").symlink_to("loop.py")
    (mine / "photos.py").mkdir()
    (mine / "ours.py").write_text("from torch import nn\nnet = nn.Flatten()\n")
    before = sorted(mine.rglob("*"))
    refused(call("--model", NOWHERE[name], *GIVEN, "--output", "out"), "model is ")
    given = ("--shape", "3x8x8", "--patch", "1x1", "--images", "1", "--output", "out")
    refused(CliRunner().invoke(audit, [NOWHERE[name], *given]), " is ")
    refused(CliRunner().invoke(audit, ["--factory", NOWHERE[name], *given]), "factory is ")
    assert sorted(mine.rglob("*")) == before


@pytest.mark.usefixtures("mine")
def test_the_home_of_an_unknown_user():
    """Is no folder of images, and holds no checkpoint."""
    given = ("--num-images", "1", "--attacks", "none", "--output", "out")
    refused(
        call("--model", "models_of_17.py:Tied", "--dataset", "folder", "--data-root", "~nobody_of_17", *given),
        "~nobody",
    )
    refused(CliRunner().invoke(sweep, ["~nobody_of_17/*.safetensors", "--theta", "0.3", "--output", "out"]), "~nobody")
