"""Measurements of a training on validation images, their frequency, and their lack of influence."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch
from rich.console import Console

from evaluate.learning import draw, read_learning
from robustpatch.ablations.kinds import Columns
from robustpatch.data.images import ImageSet
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.train import shown
from robustpatch.training.config import TrainingConfig
from robustpatch.training.loop import train
from robustpatch.training.validation import Accuracy, accuracy
from tests import helpers, toys

CONFIG = TrainingConfig(
    network={"name": "strip", "widths": [4], "hidden": 4}, epochs=5, batch_size=30, bfloat16=False, patch="2x2"
)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return helpers.half_digits(60)


def test_accuracy_on_images_spread_evenly(images):
    """Of 60 images 7 are 0, 8, 17, …, and those alone are right here; more than there are means all."""
    model, threat = toys.smoothed(toys.strip(Columns(2), (14, 14), classes=10), classes=10), PatchThreat(1, 1)
    some = [i * 60 // 7 for i in range(7)]
    certificate = model.certify(images.batch(range(60))[0], threat)
    labels = (certificate.prediction + 1) % 10
    labels[some] = certificate.prediction[some]
    labelled = replace(images, labels=labels)
    found = accuracy(model, labelled, threat, count=7)
    assert found.clean == 1
    assert found.certified_exact == pytest.approx(float(certificate.certified[some].float().mean()))
    everything = accuracy(model, labelled, threat)
    assert everything.clean == pytest.approx(7 / 60)
    assert accuracy(model, labelled, threat, count=61) == everything
    assert accuracy(model, labelled, threat, count=60) == everything


def test_measured_every_second_epoch_and_after_the_last(images, tmp_path, capsys):
    """The weights are those of the run that was measured after every epoch; progress and picture do with less."""
    often = train(CONFIG, images, images, tmp_path / "often")
    with shown(Console(), 2) as callbacks:
        seldom = train(CONFIG, images, images, tmp_path / "seldom", measure_every=2, measure_images=20, **callbacks)
    assert all(torch.equal(often.state_dict()[name], weights) for name, weights in seldom.state_dict().items())
    rows = json.loads((tmp_path / "seldom" / "history.json").read_text())
    nothing = asdict(Accuracy())
    assert set(nothing.values()) == {None}
    assert [row["epoch"] for row in rows if row["clean"] is None] == [1, 3]
    for row in rows:
        measured = {key: row[key] for key in nothing}
        assert row["loss"] > 0
        assert (measured == nothing) == (row["clean"] is None)
    last = asdict(accuracy(seldom, images, PatchThreat(2, 2), count=20))
    assert {key: rows[-1][key] for key in nothing} == last
    said = capsys.readouterr().out
    assert said.count("validation clean") == 3
    assert said.count("loss") >= 5
    draw([read_learning(str(tmp_path / "seldom" / "checkpoint.safetensors"))], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_a_measurement_of_nothing_is_refused(images, tmp_path):
    """Before the first step, with the parameter's name and value."""
    with pytest.raises(InvalidInput, match="measure_every is 0; it must be at least 1"):
        train(CONFIG, images, images, tmp_path / "run", measure_every=0)
    with pytest.raises(InvalidInput, match="measure_images is -1; it must be at least 1"):
        train(CONFIG, images, images, tmp_path / "run", measure_images=-1)
    assert not (tmp_path / "run").exists()
