"""A certifier as it is: consistency checks, attacks on what it certifies, the command line."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from evaluate.audit import audit, replay
from evaluate.audit.__main__ import app
from evaluate.audit.images import structured
from robustpatch.ablations.kinds import Columns
from robustpatch.classifiers.randomized import RandomizedClassifier
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from tests.attacks.toys import Level, smoothed
from tests.evaluate.planted import PLANTS, wide

THREAT = PatchThreat(1, 2)


class Bright:
    """Bright or dark, by the number of bright columns; certified where more columns than a patch covers decide.

    Sound, in plain numpy or torch, whichever it is given. `wrong` names a vice.
    """

    num_classes = 2

    def __init__(self, wrong: str = "") -> None:
        self.wrong, self.asked = wrong, 0

    def _lead(self, x, width):
        bright = (np.asarray(x).mean(axis=(1, 2)) > 0.5).sum(axis=1)
        if self.wrong == "company":
            bright = bright + (bright.mean() > bright)
        if self.wrong == "chance":
            self.asked += 1
            bright = bright + 9 * (self.asked % 3)
        return 2 * bright - np.asarray(x).shape[3]

    def predict(self, x):
        lead = self._lead(x, 0)
        if self.wrong == "declines":
            return np.where(np.asarray(x)[:, 0, 0, -1] > 0.97, -1, lead > 0)
        if self.wrong == "certifies to decline":
            return np.full(len(lead), -1)
        if self.wrong == "dark or nothing":
            return np.where(lead > 0, -1, 0)
        return (lead > 0).astype(int) if self.wrong != "contradiction" else (lead > 3).astype(int)

    def certify(self, x, threat):
        if self.wrong != "takes anything" and not (np.abs(np.asarray(x) - 0.5) <= 0.5).all():
            raise ValueError("no image")
        lead = self._lead(x, 0)
        needed = 0 if self.wrong == "certifies all" else 2 * threat.count * threat.width
        if self.wrong == "one column less":
            needed -= 2
        certified = np.where(lead > 0, lead > needed, -lead >= needed)
        if self.wrong == "not the smaller":
            certified = certified & (threat.width > 1)
        if self.wrong == "writes":
            x[:, :, 0, 0] = 0
        prediction = np.full(len(lead), -1) if self.wrong == "certifies to decline" else (lead > 0).astype(int)
        if self.wrong == "dark or nothing":
            prediction, certified = np.where(lead > 0, -1, 0), lead <= 0
        return SimpleNamespace(prediction=prediction, certified=certified)


def audited(target, **options):
    settings = {"threat": THREAT, "image_shape": (1, 2, 9), "images": 8, "budget": 60, **options}
    return audit(target, **settings)


def test_a_sound_one_stands():
    """No finding of any kind; what could not be tested is said."""
    done = audited(Bright())
    assert (done.verdict, done.findings, done.failed) == ("held", (), False)
    assert done.attacked == done.certified > 5
    assert done.evaluations > 0
    said = " ".join(what for what, _ in done.untested)
    assert "affected counts" in said
    assert "training mode" in said
    assert "gradients" in said


@pytest.mark.parametrize(
    ("wrong", "check", "severity"),
    [
        ("contradiction", "agreement", "inconsistent"),
        ("company", "companions", "inconsistent"),
        ("chance", "repeats", "broken certificate"),
        ("writes", "inputs", "inconsistent"),
        ("takes anything", "values", "warning"),
        ("not the smaller", "smaller patch", "inconsistent"),
        ("certifies all", "whole image", "broken certificate"),
        ("certifies all", "attack", "broken certificate"),
        ("one column less", "attack", "broken certificate"),
        ("declines", "attack", "broken certificate"),
        ("declines", "agreement", "broken certificate"),
        ("dark or nothing", "whole image", "broken certificate"),
    ],
)
def test_each_vice_is_found(wrong, check, severity, tmp_path):
    """By name; and its file shows it again, but not with the sound one."""
    done = audited(Bright(wrong), output=tmp_path)
    found = {(finding.check, finding.severity): finding for finding in done.findings}
    assert (check, severity) in found
    assert done.failed == (severity != "warning")
    assert replay(found[check, severity].path, Bright(wrong))
    assert not replay(found[check, severity].path, Bright())


def test_certified_abstentions_are_not_attacked():
    """And that is said: there is no class to move it away from."""
    done = audited(Bright("certifies to decline"))
    assert any(what == "certified abstentions" for what, _ in done.untested)
    assert done.attacked == 0


@pytest.mark.parametrize(
    ("name", "images", "budget"),
    [
        ("delta one less", 8, 40),
        ("no wrap", 8, 40),
        *(pytest.param(name, 24, 200, marks=pytest.mark.slow) for name in PLANTS),
    ],
)
def test_plants_are_found_by_attacks(name, images, budget):
    """Votes that are about to turn are sought by joining images, and turned by what the other one shows."""
    plant = PLANTS[name]
    tall, wide = plant.size
    x = plant.candidates()[:: max(1, len(plant.candidates()) // images)]
    options = {"image_shape": (1, tall, wide), "threat": plant.threat, "images": images, "budget": budget}
    assert audit(Foreign(plant.broken()), x=x, **options).verdict == "broken"
    assert not audit(Foreign(plant.sound()), x=x, **options).findings


class Foreign:
    """Of a smoothed classifier what any certifier has."""

    def __init__(self, model):
        self.model, self.num_classes = model, model.num_classes

    def predict(self, x):
        return self.model.predict(x)

    def certify(self, x, threat):
        return self.model.certify(x, threat)


@pytest.mark.usefixtures("few_plans")
def test_ours_is_tested_both_ways():
    """A smoothed classifier comes with its factory, and is attacked with gradients."""
    done = audited(smoothed(Level(2), Columns(2), 2), image_shape=(1, 3, 12), images=4, budget=60)
    assert done.verdict == "held"
    assert not done.findings
    assert done.ballots > 100
    assert not any("gradients" in what for what, _ in done.untested)


def test_a_view_too_wide_is_broken_by_attack(monkeypatch):
    monkeypatch.setattr("robustpatch.classifiers.base_check.base_is_sound", lambda *_, **__: None)
    options = {"threat": PatchThreat(2, 2), "image_shape": (1, 2, 7)}
    assert "attack" in {finding.check for finding in audited(Foreign(wide()), **options).findings}
    assert not audited(Foreign(wide(0)), **options).findings


class Dropping(nn.Module):
    """Bright or dark, and in training mode by chance."""

    num_classes = 2

    def predict(self, x):
        return torch.from_numpy(Bright().predict(nn.functional.dropout(x, 0.5, training=self.training)))

    def certify(self, x, threat):
        told = Bright().certify(x, threat)
        return SimpleNamespace(prediction=self.predict(x), certified=told.certified)


def test_training_mode():
    """Answers that differ there are found; a model that is in training mode is refused."""
    model = Dropping()
    done = audited(model.eval(), images=8, budget=20)
    assert [(f.check, f.severity) for f in done.findings] == [("training mode", "inconsistent")]
    with pytest.raises(InvalidInput, match="training mode"):
        audited(model.train())


def test_wrong_calls():
    with pytest.raises(InvalidInput, match="both None"):
        audit()
    with pytest.raises(InvalidInput, match="without predict and certify"):
        audit(object(), num_classes=2)
    with pytest.raises(InvalidInput, match="num_classes is None"):
        audit(SimpleNamespace(predict=len, certify=len))
    with pytest.raises(InvalidInput, match="budget is 0"):
        audit(Bright(), budget=0)
    with pytest.raises(InvalidInput, match="does not predict images"):
        audit(SimpleNamespace(predict=lambda x: 1 / 0, certify=len), num_classes=2)
    with pytest.raises(InvalidInput, match="attack_vs_cert"):
        audit(RandomizedClassifier.of(smoothed(Level(2), Columns(2), 2)))
    with pytest.raises(InvalidInput, match="larger than the image"):
        audit(Bright(), image_shape=(1, 4, 4))
    with pytest.raises(InvalidInput, match="no finding of an audit"):
        replay("nowhere.safetensors", Bright())


def test_structured_images_are_images():
    x = structured((3, 5, 7), 30, torch.Generator().manual_seed(0))
    assert x.shape == (30, 3, 5, 7)
    assert x.min() == 0
    assert x.max() == 1
    assert len(torch.unique(x, dim=0)) >= 28


sound, broken = Bright(), Bright("one column less")
NAME = "tests.evaluate.test_audit_target:"


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command(tmp_path):
    """0 with nothing found, 1 with a counterexample that --replay shows again, 2 with one line of what is wrong."""
    common = ("--patch", "1x2", "--shape", "1x2x9", "--images", 16, "--budget", 300, "--output")
    held = call(NAME + "sound", *common, tmp_path / "held")
    assert held.exit_code == 0, held.output
    assert "HELD" in held.output
    assert "not tested" in held.output
    bad = call(NAME + "broken", *common, tmp_path / "broken", "--json")
    assert bad.exit_code == 1, bad.output
    told = json.loads(bad.stdout)
    assert told["verdict"] == "broken"
    path = told["findings"][0]["path"]
    again = call(NAME + "broken", "--replay", path)
    assert again.exit_code == 1, again.output
    assert "the finding stands" in again.output
    assert call(NAME + "sound", "--replay", path).exit_code == 0
    assert "attack" in (tmp_path / "broken" / "report.md").read_text()
    stored = json.loads((tmp_path / "broken" / "audit.json").read_text())
    assert {key: stored[key] for key in ("verdict", "threat")} == {"verdict": "broken", "threat": "1x2"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "both None"),
        (("nowhere:x",), "no module nowhere"),
        ((NAME + "nothing",), "has no nothing"),
        (("mnist-none",), "mnist-none"),
        (("--factory", "make"), "use FILE.py:NAME"),
        ((NAME + "sound", "--shape", "28"), "shape is '28'"),
        ((NAME + "sound", "--patch", "99x99"), "larger than the image"),
        ((NAME + "sound", "--images", 0), "images is 0"),
        (("--replay", "nowhere.safetensors"), "no finding of an audit"),
        ((NAME + "sound", "--time-limit", "0"), "time limit is 0"),
        ((NAME + "sound", "--output", "/dev/null/x"), "cannot be written"),
    ],
)
def test_wrong_calls_of_the_command(arguments, message):
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.output


def test_a_checkpoint_of_another_defense_by_its_name(tmp_path):
    """Attacked like any other; one that certifies nothing is refused."""
    calls = ["--images", "1", "--budget", "20", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["mnist-ibp", *calls])
    assert result.exit_code == 0, result.output
    assert "HELD" in result.output
    assert json.loads((tmp_path / "out" / "audit.json").read_text())["attacked"] > 0
    refused = CliRunner().invoke(app, ["mnist-undefended", *calls])
    assert refused.exit_code == 2


def test_scores_that_are_no_numbers_are_no_answer():
    """NaN beside a number: the certifier is refused, not asked on with a class that it does not have."""

    class Lost(Bright):
        def predict(self, x):
            return np.stack([super().predict(x) * np.nan, np.ones(len(x))], axis=1)

    with pytest.raises(InvalidInput, match="predict returned scores of which none is the largest"):
        audited(Lost())
