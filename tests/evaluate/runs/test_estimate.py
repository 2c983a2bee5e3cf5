"""What a run will cost is told at once, and costs at most a tenth of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from attacks import PatchPGD
from evaluate import Settings, evaluate
from evaluate.runs import estimate as module
from evaluate.runs.estimate import estimate
from robustpatch.ablations.kinds import Columns
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Threshold
from tests.evaluate.calls import call
from tests.evaluate.planted import image_set

SIZE = 24


class Counting(torch.nn.Module):
    """Counts the ablated images that it scores."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 2))
        self.scored = [0]

    def forward(self, x):
        self.scored[0] += len(x)
        return x.mean(dim=(1, 2, 3))[:, None] * self.weight


def scene(number: int):
    x = torch.rand(number, 1, 8, SIZE, generator=torch.Generator().manual_seed(0))
    return image_set(x, torch.ones(number, dtype=torch.long), 2)


@pytest.mark.parametrize(("number", "attacks"), [(10, ()), (10, (PatchPGD(steps=2, restarts=1),)), (400, ())])
def test_an_estimate_costs_a_tenth_of_what_it_estimates(tmp_path, monkeypatch, number, attacks):
    """In ablations scored, where no seconds are free; and speaks before it begins."""
    monkeypatch.setattr(module, "CHEAP", 0.0)
    base, told = Counting(), []
    model = SmoothedClassifier(base, Columns(3), num_classes=2, voting=Threshold(0.3)).eval()
    settings = Settings(number, 50, 300, 0, gallery=0)
    given = (scene(number), PatchThreat(2, 2), attacks, settings)
    evaluate(model, *given, tmp_path)
    whole, base.scored[0] = base.scored[0], 0
    found = estimate(model, *given, on_progress=lambda _, what: told.append((base.scored[0], what)))
    assert base.scored[0] <= whole / 10
    assert told[0] == (0, "timing one image")
    assert found.images == number
    assert found.certifying > 0
    assert (found.attacking > 0) == bool(attacks) == (found.evaluations > 0)
    assert (found.certified is None) == (number == 10)


SLOW = """
import time
from pathlib import Path
import torch
from robustpatch import Columns, SmoothedClassifier

class Slow(torch.nn.Module):
    def forward(self, x):
        with Path(__file__).with_name("scored").open("a") as log:
            log.write("." * len(x))
        time.sleep(0.002 * len(x))
        return x[:, :2, 0, 0]

net = SmoothedClassifier(Slow(), Columns(20), num_classes=2)
"""


def test_a_dry_run_on_large_images(tmp_path):
    """Of 512x512 pixels and 512 ablations each scores a tenth of them, and says what it does before that."""
    folder = tmp_path / "photos" / "test" / "cat"
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((512, 512, 3), np.uint8)).save(folder / "0.png")
    for number in range(1, 10):
        (folder / f"{number}.png").write_bytes((folder / "0.png").read_bytes())
    (tmp_path / "photos" / "test" / "dog").mkdir()
    (tmp_path / "photos" / "test" / "dog" / "0.png").write_bytes((folder / "0.png").read_bytes())
    (tmp_path / "slow.py").write_text(SLOW)
    given = ["--model", f"{tmp_path}/slow.py:net", "--attacks", "pgd:1", "--plain"]
    data = ["--dataset", "folder", "--data-root", tmp_path / "photos", "--image-size", "512", "--num-images", 10]
    done = call(*given, *data, "--patch", "50x50", "--dry-run")
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines()[0] == "0/10 timing one image"
    assert "10 images: " in done.stdout
    assert len((tmp_path / "scored").read_text()) <= 10 * 512 * 2 / 10  # certify and predict, without any attack
