"""The evaluator is not blind: each planted bug ends in a counterexample or a refusal, a sound certifier in neither."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from attacks import Control, ExhaustivePGD, PatchPGD
from attacks.occlusion import CONTROLS
from evaluate import Settings, evaluate, summarise
from evaluate.runs.counterexample import load_counterexample, replay
from robustpatch.ablations.kinds import Columns
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.errors import InvalidInput
from robustpatch.threats.any_of import AnyOf
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import TopOne
from tests.attacks.toys import Level, smoothed
from tests.evaluate.planted import PLANTS, Noisy, exposing, image_set, wide

ATTACKS = [ExhaustivePGD(steps=6, rounds=1)]


def run(model, x, threat, output, attacks=ATTACKS, labels=None, **settings):
    labels = torch.zeros(len(x), dtype=torch.long) if labels is None else labels
    settings = Settings(len(x), **{"batch_size": 4, "certified_budget": None, **settings})
    records = evaluate(model, image_set(x, labels, model.num_classes), threat, attacks, settings, output)
    return records, summarise(records)


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_caught(name, tmp_path):
    """The verdict is "broken" for every wrong claim, and every counterexample saved stands when replayed."""
    plant = PLANTS[name]
    wrong, model = exposing(plant), plant.broken()
    assert len(wrong) > 0
    records, summary = run(model, wrong, plant.threat, tmp_path)
    assert summary.verdict == "broken"
    assert summary.certified_attacked == summary.certified_images == len(wrong)
    files = sorted((tmp_path / "counterexamples").iterdir())
    assert {load_counterexample(file).index for file in files} == {r.index for r in records if r.violations}
    for file in files:
        outcome, certified = replay(load_counterexample(file), model)
        assert outcome.broken.all()
        assert certified


@pytest.mark.parametrize("name", PLANTS)
def test_a_sound_certifier_never_is(name, tmp_path):
    """The same images without the bug, none of them certified, and black ones at the very edge: "held"."""
    plant = PLANTS[name]
    _, summary = run(plant.sound(), exposing(plant), plant.threat, tmp_path / "same")
    assert summary.verdict == "not tested"
    assert summary.certified_images == 0
    _, summary = run(plant.sound(), torch.zeros(2, 1, *plant.room), plant.threat, tmp_path / "edge")
    assert summary.verdict == "held"
    assert summary.certified_images == summary.certified_attacked == 2
    assert summary.certified_evaluations > 0
    assert not list(tmp_path.glob("*/counterexamples"))


@pytest.mark.parametrize("name", ["delta one less", "stride gap", "height and width swapped"])
def test_patch_pgd_catches_bugs_too(name, tmp_path):
    """Random placements suffice where most placements are dangerous."""
    plant = PLANTS[name]
    _, summary = run(plant.broken(), exposing(plant), plant.threat, tmp_path, [PatchPGD(steps=6, restarts=30)])
    assert summary.verdict == "broken"


def test_predict_that_contradicts_certify(tmp_path):
    """A `predict` of its own on certified images is a broken promise without any patch."""

    class TwoMinds(SmoothedClassifier):
        def predict(self, x):
            return 1 - super().predict(x)

    model = TwoMinds(Level(2), Columns(1), num_classes=2, voting=TopOne(1e-6)).eval()
    _, summary = run(model, torch.zeros(2, 1, 2, 9), PatchThreat(1, 1), tmp_path)
    assert summary.verdict == "broken"
    assert {"index": 0, "attack": "predict"} in summary.violations
    file = tmp_path / "counterexamples" / "image-00000000-predict-1x1.safetensors"
    outcome, certified = replay(load_counterexample(file), model)
    assert outcome.broken.all()
    assert certified


class Declining(SmoothedClassifier):
    """Abstains where a pixel is bright, and certifies as if it did not."""

    def predict(self, x):
        return torch.where(x.flatten(1).amax(dim=1) > 0.5, -1, super().predict(x))


def test_an_abstention_breaks_a_certificate(tmp_path):
    """Of a proof, and of one that holds with a confidence but by the model's declaration that it answers by chance:
    then it is no answer, and where there is no other nothing was tested.
    """

    class Unsure(Declining):
        prediction_error = 0.0  # no declaration

        def certify(self, x, threat, method="exact"):
            return replace(super().certify(x, threat, method), confidence=0.95, evidence=None)

    class Declared(Unsure):
        randomized = True  # and says nothing of its chances

    class Sure(Declining):
        prediction_error = 0.0
        randomized = True  # but its certificates are proofs

    class Claiming(Declining):
        def predict(self, x):
            return torch.full_like(super().predict(x), -1)

        def certify(self, x, threat, method="exact"):
            return replace(super().certify(x, threat, method), prediction=self.predict(x), evidence=None)

    kinds = ((Declining, "broken"), (Unsure, "broken"), (Declared, "not tested"), (Sure, "broken"))
    for kind, verdict in kinds:
        model = kind(Level(2), Columns(1), num_classes=2, voting=TopOne(1e-6)).eval()
        _, summary = run(model, torch.zeros(4, 1, 2, 9), PatchThreat(1, 1), tmp_path / kind.__name__)
        assert (summary.certified_images, summary.verdict) == (4, verdict)
        for file in (tmp_path / kind.__name__ / "counterexamples").glob("*"):
            outcome, certified = replay(load_counterexample(file), model)
            assert int(outcome.prediction) == -1
            assert outcome.broken.all()
            assert certified
    assert len(list((tmp_path / "Declining" / "counterexamples").iterdir())) == 4
    model = Claiming(Level(2), Columns(1), num_classes=2, voting=TopOne(1e-6)).eval()
    with pytest.raises(InvalidInput, match="certified of the certificate is True where the prediction is -1"):
        run(model, torch.zeros(4, 1, 2, 9), PatchThreat(1, 1), tmp_path / "Claiming")


def test_a_bug_in_the_margin_method_alone(tmp_path):
    """What only the paper's certificate claims is attacked as well, and its counterexample stands when replayed."""

    class Bold(SmoothedClassifier):
        def certify(self, x, threat, method="exact"):
            if method == "exact":
                return super().certify(x, threat)
            return PLANTS["delta one less, margin"].proof(self, x, threat)

    plant = PLANTS["delta one less, margin"]
    model = Bold(Level(2), plant.ablation, num_classes=2, voting=TopOne(1e-6)).eval()
    wrong = exposing(plant)
    assert not model.certify(wrong, plant.threat).certified.any()
    _, summary = run(model, wrong, plant.threat, tmp_path)
    assert summary.verdict == "broken"
    for file in (tmp_path / "counterexamples").iterdir():
        outcome, certified = replay(load_counterexample(file), model)
        assert outcome.broken.all()
        assert certified


def test_one_of_several_threats_is_wrong(tmp_path):
    """Under "either", every member is attacked: a bug that shows for one shape alone is found."""
    plant = PLANTS["height and width swapped"]

    class Turned(SmoothedClassifier):
        def certify(self, x, threat, method="exact"):
            return replace(super().certify(x, PatchThreat(6, 2), method), threat=threat)

    model = Turned(Level(2), plant.ablation, num_classes=2, voting=TopOne(1e-6)).eval()
    either = AnyOf([PatchThreat(6, 2), PatchThreat(2, 6)])
    records, summary = run(model, torch.zeros(1, 1, *plant.size), either, tmp_path)
    assert summary.verdict == "broken"
    assert [(a.threat, a.broken) for a in records[0].attacks] == [("6x2", False), ("2x6", True)]


def nearly_black():
    """Two bright columns of ten: a band that looks beside itself votes otherwise than it should."""
    x = torch.zeros(2, 1, 2, 10)
    x[0, :, :, 4] = 1
    return x


def test_too_wide_a_view_is_refused(tmp_path):
    """A one-pass base that sees beyond its band is found out before it certifies; its honest twin is not."""
    with pytest.raises(InvalidInput, match="the base sees more than its band"):
        run(wide(), nearly_black(), PatchThreat(2, 2), tmp_path / "wide")
    assert run(wide(0), nearly_black(), PatchThreat(2, 2), tmp_path / "exact")[1].verdict == "held"


@pytest.mark.usefixtures("unchecked_base")
def test_too_wide_a_view_is_broken_by_the_attacks(tmp_path):
    """Even if the check of the base were blind, the attacks on certified images are not."""
    x = torch.zeros(1, 1, 2, 7)
    assert run(wide(), x, PatchThreat(2, 2), tmp_path / "wide")[1].verdict == "broken"
    assert run(wide(0), x, PatchThreat(2, 2), tmp_path / "exact")[1].verdict == "held"


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm2d(2)])
def test_a_base_in_training_mode_is_refused(layer, tmp_path):
    """In training mode there is no one function to certify; in evaluation mode the same base holds."""
    model = smoothed(Noisy(layer), Columns(1), 2)
    model.base.layer.train()
    with pytest.raises(InvalidInput, match="training mode"):
        run(model, torch.zeros(2, 1, 2, 9), PatchThreat(1, 2), tmp_path / "training")
    assert run(model.eval(), torch.zeros(2, 1, 2, 9), PatchThreat(1, 2), tmp_path / "evaluation")[1].verdict == "held"


class Forgetful(nn.Module):
    """Dropout that never looks at the mode."""

    def forward(self, x):
        return nn.functional.dropout(x, 0.5, training=True)


@pytest.mark.parametrize("layer", [Forgetful(), nn.BatchNorm2d(2, track_running_stats=False)])
def test_a_base_that_is_no_function_of_one_image_is_refused(layer, tmp_path):
    """Random in evaluation mode, or coupled to the other images of the batch."""
    x = torch.rand(2, 1, 2, 9, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InvalidInput, match="couples images or is random"):
        run(smoothed(Noisy(layer), Columns(1), 2), x, PatchThreat(1, 2), tmp_path)


@pytest.mark.parametrize("content", CONTROLS)
def test_a_control_tests_no_certificate_and_may_break_one(content, tmp_path):
    """Alone it leaves a sound certifier "not tested"; what it changes of a wrong one is a counterexample as any."""
    plant = PLANTS["no wrap"]
    control, black = Control(content=content), torch.zeros(2, 1, *plant.room)
    _, summary = run(plant.sound(), black, plant.threat, tmp_path / "alone", [control])
    assert (summary.verdict, summary.certified_images, summary.certified_attacked) == ("not tested", 2, 0)
    _, summary = run(plant.sound(), black, plant.threat, tmp_path / "beside", [control, *ATTACKS])
    assert (summary.verdict, summary.certified_attacked) == ("held", 2)
    if content == "noise":
        wrong = exposing(plant)
        records, summary = run(plant.broken(), wrong, plant.threat, tmp_path / "wrong", [control])
        assert summary.verdict == "broken"
        saved = {load_counterexample(file).index for file in (tmp_path / "wrong" / "counterexamples").iterdir()}
        assert saved == {r.index for r in records if r.violations}
