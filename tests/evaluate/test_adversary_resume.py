"""Resumed runs that an adversary brought to a false HELD: each change that matters is another run, or is seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from attacks import SparseRS
from evaluate import Settings, evaluate
from robustpatch.certificate import Certificate
from robustpatch.errors import InvalidInput
from robustpatch.threat import PatchThreat
from tests.evaluate.planted import image_set

ATTACKS = (SparseRS(queries=20),)


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
    return evaluate(model.eval(), photos(), PatchThreat(1, 1), attacks, Settings(4, gallery=0), output, **more)


def broken(records):
    return any(record.violations for record in records)


@pytest.mark.parametrize("key", ["attacks", "seed", "threat", "model_sha256", "model_code", "attacks_code", "left_out"])
def test_a_note_takes_no_key_that_tells_runs_apart(key, tmp_path):
    """Else two runs with that note would be one, whatever their attacks and models are."""
    with pytest.raises(InvalidInput, match=f"configuration has the key {key}, .*; rename it"):
        run(Rule(2.0), tmp_path, configuration={"comment": "nightly", key: "mine"})
    assert not list(tmp_path.iterdir())


def test_no_note_leaves_the_code_out(tmp_path):
    """Not even one that names a checkpoint, nor an argument that says so where the code is the user's own."""
    for name, more in (("a", {}), ("b", {"of_checkpoint": True})):
        note = {"checkpoint_sha256": "abc"}
        assert not broken(run(Rule(2.0), tmp_path / name, configuration=note, **more))
        with pytest.raises(InvalidInput, match="holds another run"):
            run(Rule(0.8), tmp_path / name, configuration=note, **more)
    assert broken(run(Rule(0.8), tmp_path / "c"))


_CONFIG = {"limit": 2.0}


class Table(Rule):
    """A private table looks like a cache, and `code_of` leaves it out."""

    def limit(self):
        return _CONFIG["limit"]


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
        _CONFIG["limit"] = limit
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
