"""A certifier as it is: contradictions are found, what it certifies is attacked, alerts break nothing."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from evaluate.audit import audit, replay
from evaluate.audit.certifier import AuditedCertifier, Refused
from evaluate.audit.images import structured
from robustpatch.ablations.kinds import Columns
from robustpatch.classifiers.randomized import RandomizedClassifier
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from tests.attacks.toys import Level, smoothed
from tests.evaluate.audits import SMALL, Bright, Foreign, audited, seen
from tests.evaluate.planted import PLANTS, wide


def test_a_sound_one_holds():
    """No finding of any kind; what could not be tested is said."""
    done = audited(Bright())
    assert (done.verdict, done.findings, done.failed) == ("held", (), False)
    assert done.attacked == done.certified > 5
    assert done.evaluations > 0
    said = " ".join(what for what, _ in done.untested)
    assert all(what in said for what in ("affected counts", "training mode", "gradients"))


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ("contradiction", [("agreement", "inconsistent")]),
        ("company", [("companions", "inconsistent")]),
        ("chance", [("repeats", "broken certificate")]),
        ("writes", [("inputs", "inconsistent")]),
        ("takes anything", [("values", "warning")]),
        ("not the smaller", [("smaller patch", "inconsistent")]),
        ("certifies all", [("whole image", "broken certificate"), ("attack", "broken certificate")]),
        ("one column less", [("attack", "broken certificate")]),
        ("declines", [("attack", "broken certificate"), ("agreement", "broken certificate")]),
        ("dark or nothing", [("whole image", "broken certificate")]),
    ],
)
def test_each_bug_is_found(wrong, found, tmp_path):
    """By name; and its file shows it again, but not with the sound one."""
    done = audited(Bright(wrong), output=tmp_path)
    assert set(found) <= seen(done)
    assert done.failed == (wrong != "takes anything")
    for one in done.findings:
        if (one.check, one.severity) in found:
            assert replay(one.path, Bright(wrong))
            assert not replay(one.path, Bright())


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


@pytest.mark.usefixtures("few_plans")
def test_ours_is_tested_both_ways():
    """A smoothed classifier comes with its factory, and is attacked with gradients."""
    done = audited(smoothed(Level(2), Columns(2), 2), image_shape=(1, 3, 12), images=2, budget=10)
    assert (done.verdict, done.findings) == ("held", ())
    assert done.ballots > 100
    assert not any("gradients" in what for what, _ in done.untested)


@pytest.mark.usefixtures("unchecked_base")
def test_a_view_too_wide_is_broken_by_attack():
    options = {"threat": PatchThreat(2, 2), "image_shape": (1, 2, 7)}
    assert ("attack", "broken certificate") in seen(audited(Foreign(wide()), **options))
    assert not audited(Foreign(wide(0)), **options).findings


class Dropping(nn.Module):
    """Bright or dark, and in training mode by chance."""

    num_classes = 2

    def predict(self, x):
        return torch.from_numpy(Bright().predict(nn.functional.dropout(x, 0.5, training=self.training)))

    def certify(self, x, threat):
        return SimpleNamespace(prediction=self.predict(x), certified=Bright().certify(x, threat).certified)


def test_training_mode():
    """Answers that differ there are found; a model that is in training mode is refused."""
    model = Dropping()
    done = audited(model.eval(), budget=20)
    assert seen(done) == {("training mode", "inconsistent")}
    with pytest.raises(InvalidInput, match="training mode"):
        audited(model.train())


class NotNumbers(Bright):
    """NaN beside a number: refused, not asked on with a class that it does not have."""

    def predict(self, x):
        return np.stack([super().predict(x) * np.nan, np.ones(len(x))], axis=1)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (None, {}, "both None"),
        (object(), {"num_classes": 2}, "without predict and certify"),
        (SimpleNamespace(predict=len, certify=len), {}, "num_classes is None"),
        (Bright(), {"budget": 0}, "budget is 0"),
        (SimpleNamespace(predict=lambda x: 1 / 0, certify=len), {"num_classes": 2}, "does not predict images"),
        (RandomizedClassifier.of(smoothed(Level(2), Columns(2), 2)), {}, "robustpatch attack-vs-cert"),
        (Bright(), {"image_shape": (1, 1, 9), "threat": PatchThreat(2, 2)}, "larger than the image"),
        (NotNumbers(), {}, "predict returned scores of which none is the largest"),
    ],
)
def test_wrong_calls(target, options, message):
    with pytest.raises(InvalidInput, match=message):
        audited(target, **options)


def test_structured_images_are_images():
    x = structured((3, 5, 7), 30, torch.Generator().manual_seed(0))
    assert x.shape == (30, 3, 5, 7)
    assert (x.min(), x.max()) == (0, 1)
    assert len(torch.unique(x, dim=0)) >= 28


class Watchful:
    """Bright or dark by the number of bright columns; where columns are neither, an alert. Certified with a lead of
    more than the patch covers, or where no column is in between: what it covers is answered rightly or with an alert.
    """

    num_classes = 2

    def __init__(self, alert: int = -1, bold: bool = False, **attributes) -> None:
        self.alert, self.bold = alert, bold
        vars(self).update(attributes)

    def predict(self, x):
        column = np.asarray(x).mean(axis=(1, 2))
        bright = (column > 0.5).sum(axis=1)
        alarmed = ((column > 0.1) & (column < 0.9)).any(axis=1) & (not self.bold)
        return np.where(alarmed, self.alert, (2 * bright > column.shape[1]).astype(int))

    def certify(self, x, threat):
        column = np.asarray(x).mean(axis=(1, 2))
        lead = 2 * (column > 0.5).sum(axis=1) - column.shape[1]
        needed = 2 * threat.count * threat.width - (2 if self.bold else 0)
        certified = np.where(lead > 0, lead > needed, -lead >= needed)
        return SimpleNamespace(prediction=(lead > 0).astype(int), certified=certified)


@pytest.mark.parametrize(("alert", "alerts"), [(-1, True), (2, True), (-7, -7)])
def test_an_alert_breaks_nothing_where_it_is_declared(alert, alerts):
    """A wrong class does; and so does an alert that is not declared."""
    assert audited(Watchful(alert), alerts=alerts).verdict == "held"
    assert audited(Watchful(alert, bold=True), alerts=alerts).verdict == "broken"
    if alert == -1:
        assert audited(Watchful(alert)).verdict == "broken"
        assert audited(Watchful(alert, randomized=True)).verdict == "held"


@pytest.mark.parametrize("alerts", [0, 1])
def test_an_alert_is_no_class(alerts):
    with pytest.raises(InvalidInput, match="that is no class"):
        AuditedCertifier(Watchful(), 2, alerts=alerts)


class Blanking(nn.Module):
    """Writes zeros into whatever it is given, after it has looked."""

    num_classes = 2

    def forward(self, x):
        bright = x.clone().mean(dim=(1, 2, 3)) - 0.5
        with torch.no_grad():
            x.zero_()
        return torch.stack([-bright, bright], dim=1)

    def predict(self, x):
        found = (x.clone().mean(dim=(1, 2, 3)) > 0.5).long()
        x.zero_()
        return found

    def certify(self, x, threat):
        return SimpleNamespace(prediction=self.predict(x), certified=torch.ones(len(x), dtype=torch.bool))


def test_images_are_given_as_copies():
    """A certifier that writes to them is named, and attacked on the images as they were, by scores and predictions."""
    x = torch.rand(4, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    before, subject = x.clone(), AuditedCertifier(Blanking().eval(), 2)
    for ask in (subject, subject.predict, lambda own: subject.certify(own, PatchThreat(1, 1))):
        ask(x)
        assert torch.equal(x, before)
    found = seen(audited(Blanking().eval(), budget=50))
    assert {("inputs", "inconsistent"), ("attack", "broken certificate")} <= found


def test_answers_are_copies():
    """A certifier that fills one array again and again does not change what it said before."""
    kept = SimpleNamespace(prediction=np.zeros(1, int), certified=np.zeros(1, bool))

    def certify(x, threat):
        kept.certified[:] = np.asarray(x).mean() > 0.5
        return kept

    subject = AuditedCertifier(SimpleNamespace(predict=len, certify=certify), 2)
    first = subject.certify(torch.ones(1, 1, 2, 2), PatchThreat(1, 1))
    subject.certify(torch.zeros(1, 1, 2, 2), PatchThreat(1, 1))
    assert bool(first.certified[0])


class Fussy(Bright):
    """Refuses more images, or wider ones, than it was made for."""

    def certify(self, x, threat):
        if len(x) > 8 or x.shape[3] > 18:
            raise MemoryError("at most 8 images")
        return super().certify(x, threat)


class Once(nn.Module):
    """Its scores, which attacks ask for with gradients, are of one image at a time."""

    num_classes = 2

    def forward(self, x):
        if len(x) > 1:
            raise MemoryError("at most 8 images")
        return torch.stack([0.5 - x.mean(dim=(1, 2, 3)), x.mean(dim=(1, 2, 3)) - 0.5], dim=1)

    def predict(self, x):
        return Bright().predict(x)

    def certify(self, x, threat):
        return Bright().certify(x, threat)


@pytest.mark.parametrize("target", [Fussy("contradiction"), Fussy(), Once().eval()], ids=["wrong", "sound", "scores"])
def test_an_error_amid_the_attacks_loses_nothing(target):
    """Earlier findings are reported, and certificates that the error left untested are not held."""
    done = audited(target)
    assert any(what.startswith("attacking") and "at most 8 images" in why for what, why in done.untested)
    assert done.verdict == "not tested"
    assert done.failed == (getattr(target, "wrong", "") == "contradiction")


def test_an_error_is_told_with_its_place():
    message = r"MemoryError: at most 8 images \(.*test_audit_target.py, line \d+, in certify\)"
    with pytest.raises(Refused, match=message):
        AuditedCertifier(Fussy(), 2).certify(torch.zeros(1, 1, 2, 20), SMALL["threat"])
