"""Classifiers without a certificate: the same code attacks them, and claims nothing."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from attacks import ExhaustivePGD, PatchPGD
from attacks.oracle import Oracle
from evaluate import Settings, evaluate, summarise
from evaluate.runs.records import Record
from robustpatch.checkpoints import load_checkpoint
from robustpatch.errors import InvalidInput
from robustpatch.threats.any_of import AnyOf
from robustpatch.threats.rectangle import PatchThreat
from tests.as_evaluator import predict
from tests.attacks.toys import Plain, images, worlds
from tests.evaluate.calls import call, refused
from tests.evaluate.planted import image_set

SIZE = (5, 8)
THREAT = PatchThreat(2, 2)
ATTACKS = (PatchPGD(steps=8, restarts=6), ExhaustivePGD(steps=4, rounds=0))
QUICK = ("--attacks", "pgd:2,exhaustive", "--steps", 2, "--budget", 300, "--batch-size", 6)


def scene(number=12):
    """Black and white images, two thirds of them labelled as the classifier sees them."""
    x = images(number, SIZE, binary=True)
    y = predict(classifier(), x)
    return image_set(x, torch.where(torch.arange(number) % 3 == 0, (y + 1) % 3, y), 3)


def classifier() -> nn.Module:
    return Plain(SIZE[0] * SIZE[1]).eval()


def run(output, model=None, data=None, threat=THREAT, attacks=ATTACKS):
    data = data or scene()
    return evaluate(model or classifier(), data, threat, attacks, Settings(len(data), 5), output)


class Abstaining(nn.Module):
    """A classifier with a `predict` of its own, which declines every image whose first pixel is black."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = classifier()

    def forward(self, x):
        return self.plain(x)

    def predict(self, x):
        return torch.where(x[:, 0, 0, 0] > 0, self(x).argmax(dim=1), -1)


def test_every_image_classified_correctly_is_attacked_and_nothing_is_claimed(tmp_path):
    """All attacks on the right images, none on the wrong ones; whatever a certificate would say is None."""
    records = run(tmp_path)
    assert [r.correct for r in records] == [i % 3 > 0 for i in range(12)]
    for r in records:
        assert [a.attack for a in r.attacks] == (["pgd-6", "exhaustive"] if r.correct else [])
        assert all(a.contained and a.in_range and a.evaluations > 0 for a in r.attacks)
        assert all(a.prediction != r.prediction for a in r.attacks if a.broken)
        assert not r.certified
        assert r.violations == []
    known = {"index", "label", "prediction", "attacks"}
    counts = {"close_votes": 0, "votes": 0, "placeless": False}
    for field in fields(Record):
        if field.name not in known:
            assert {getattr(r, field.name) for r in records} == {counts.get(field.name)}
    assert {a.broken for r in records for a in r.attacks} == {True, False}
    summary = summarise(records)
    assert (summary.verdict, summary.certified_exact, summary.certified_margin, summary.gap) == (
        "no certificate",
        None,
        None,
        None,
    )
    assert summary.clean.hits == 8 > summary.under_all.hits


def test_attacks_find_what_there_is(tmp_path):
    """An image is broken by some content of zeros and ones, tried one by one, or by none; never otherwise."""
    data, model = scene(), classifier()
    records = run(tmp_path, model, data, attacks=(Oracle(), ATTACKS[1]))
    x, _ = data.batch(range(12))
    truth = [bool((predict(model, worlds(x[r.index], THREAT)) != r.prediction).any()) for r in records if r.correct]
    assert [r.attacks[0].broken for r in records if r.correct] == truth
    assert [r.attacks[1].broken for r in records if r.correct] == truth  # linear: the worst content is 0 and 1
    assert {True, False} == set(truth)


@pytest.mark.parametrize("threat", [PatchThreat(1, 1, 2), AnyOf([PatchThreat(1, 3), PatchThreat(3, 1)])], ids=str)
def test_other_threats_run(threat, tmp_path):
    """Two patches and either of two shapes, each attacked."""
    for r in run(tmp_path, threat=threat, attacks=ATTACKS[:1]):
        assert [a.threat for a in r.attacks] == [str(one) for one in threat.threats if r.correct]


def test_a_models_own_predict_is_the_prediction(tmp_path):
    """An abstention is no class: not correct, not attacked, and no longer the answer under attack."""
    records = run(tmp_path, Abstaining().eval())
    x, _ = scene().batch(range(12))
    assert [r.prediction for r in records] == Abstaining().predict(x).tolist()
    assert -1 in [r.prediction for r in records]
    assert all(not r.attacks for r in records if r.prediction == -1)
    assert any(r.attacks for r in records)
    assert all(a.broken for r in records for a in r.attacks if a.prediction == -1)
    records = run(tmp_path / "oracle", Abstaining().eval(), attacks=[Oracle()])
    assert any(a.prediction == -1 for r in records for a in r.attacks)


def test_what_is_no_classifier_or_no_image_is_refused(tmp_path):
    """Training mode, also deep inside and behind a `predict`, and pixels that are none: before anything is attacked."""
    for model in (Plain(40), nn.Sequential(nn.Dropout(), classifier()), Abstaining()):
        with pytest.raises(InvalidInput, match=r"training mode.*call model.eval\(\)"):
            run(tmp_path / type(model).__name__, model.train())
    data = scene()
    bad = replace(data, _bytes=data.batch(range(12))[0] * 2)
    with pytest.raises(InvalidInput, match="images range from 0 to 2"):
        run(tmp_path / "bad", data=bad)
    assert not list(tmp_path.glob("*/records/*"))


def test_an_ordinary_run(undefended, tmp_path):
    """Exit 0, a table without a certified row, a plain verdict, and a summary from which the run can be repeated."""
    result = call("--checkpoint", undefended, *QUICK, "--num-images", 12, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    for word in ("undefended", "clean", "under pgd-2", "under exhaustive", "NO CERTIFICATE: "):
        assert word in result.stdout
    for word in ("certified (", "gap", "guard", "votes", "HELD", "NOT TESTED"):
        assert word not in result.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["verdict"], summary["certified_exact"], summary["gap"]) == ("no certificate", None, None)
    assert summary["measured_deviation"] is None
    assert 8 <= summary["clean"]["hits"] < 12
    assert summary["under_all"]["hits"] < summary["clean"]["hits"]
    configuration = summary["configuration"]
    assert (configuration["ablation"], configuration["dtype"]) == (None, "float32")
    assert not {"voting", "guard", "encoding"} & set(configuration)


def test_the_other_precision_and_no_attacks(undefended, tmp_path):
    """bfloat16 weights see float images; without attacks the clean accuracy alone is printed."""
    given = ("--checkpoint", undefended, "--num-images", 8, "--dtype", "bfloat16")
    assert call(*given, *QUICK, "--output", tmp_path / "a").exit_code == 0
    result = call(*given, "--attacks", "none", "--output", tmp_path / "b")
    assert result.exit_code == 0, result.output
    assert "under" not in result.stdout.replace("undefended", "")
    assert "NO CERTIFICATE" in result.stdout


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--ablation", "columns:2"), "ablation is columns:2, but checkpoint plain.safetensors is undefended"),
        (("--theta", "0.4"), "theta is 0.4, but checkpoint"),
        (("--voting", "scores"), "voting is scores, but checkpoint"),
        (("--guard", "0"), "guard is 0.0, but checkpoint"),
    ],
    ids=lambda part: part[0],
)
def test_options_that_an_undefended_classifier_has_no_use_for(option, message, undefended, tmp_path):
    """Refused with the option's name and the remedy, and nothing is written."""
    result = call("--checkpoint", undefended, *option, "--num-images", 2, "--output", tmp_path / "run")
    refused(result, message)
    assert "is undefended and" in result.stderr
    assert f"drop {option[0]} or name another checkpoint" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_counterexample_to_no_certificate(undefended, tmp_path):
    """--replay of a file that names an undefended checkpoint is a wrong call."""
    run = {"checkpoint": str(undefended), "checkpoint_sha256": load_checkpoint(undefended).sha256, "dtype": "float32"}
    claim = {"index": 0, "prediction": 0, "attack": "a", "threat": [1, 1, 1], "configuration": run}
    tensors = {name: torch.zeros(1, 28, 28) for name in ("x", "x_adv")} | {
        "corners": torch.zeros(1, 2, dtype=torch.long)
    }
    save_file(tensors, tmp_path / "odd", metadata={"counterexample": json.dumps(claim)})
    refused(call("--checkpoint", undefended, "--replay", tmp_path / "odd"), "plain.safetensors is undefended")


def test_the_shipped_undefended_checkpoint(tmp_path):
    """It reads nearly every digit, and five placements of a 5x5 patch take some of that away."""
    shipped = ("--checkpoint", "mnist-undefended")
    result = call(*shipped, "--attacks", "none", "--num-images", 500, "--output", tmp_path / "a")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["clean"]["hits"] >= 490
    given = ("--attacks", "pgd:5", "--steps", 8, "--num-images", 20, "--output", tmp_path / "b")
    assert call(*shipped, *given).exit_code == 0
    summary = json.loads((tmp_path / "b" / "summary.json").read_text())
    assert summary["attacks"]["pgd-5"]["accuracy"]["hits"] < summary["clean"]["hits"]
