"""Models of users in other shapes: TorchScript, files of weights, tied weights, files inside packages."""

from __future__ import annotations

import warnings

import pytest
import torch
from PIL import Image

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
    ["models_of_17.py:Tied", "models_of_17.py:normed", "models_of_17.py:script", "outer_of_17/inner/relative.py:make"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_models_of_other_shapes(name, mine):
    """One image at a time."""
    done = call("--model", name, *GIVEN, "--output", "out")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("name", ["scripted.pt", "net.pth:net", "net.safetensors"])
@pytest.mark.usefixtures("mine")
def test_files_of_weights(name):
    refused(call("--model", name, *GIVEN, "--output", "out"), "a file of weights, which names no network to run; write")
