"""Certificates that hold with a confidence: changed predictions are counted against what it allows."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from math import comb

import pytest
import torch
from rich.console import Console

from attacks import Ensemble, ExhaustivePGD, PatchPGD
from evaluate import Settings, evaluate, summarise
from evaluate.results.metrics import LEVEL
from evaluate.results.report_columns import summary_table
from evaluate.runs.counterexample import load_counterexample, replay
from evaluate.runs.records import read_records
from robustpatch.ablations.kinds import Columns
from robustpatch.ablations.sparse import SparseAblation
from robustpatch.certificates import randomized as sampling
from robustpatch.certificates.randomized import Sampling
from robustpatch.classifiers import randomized
from robustpatch.classifiers.randomized import RandomizedClassifier, image_keys
from robustpatch.threats.rectangle import PatchThreat
from tests.as_evaluator import predict
from tests.attacks.toys import Level
from tests.evaluate.calls import call, refused
from tests.evaluate.planted import image_set, striped
from tests.evaluate.results.test_metrics import attack, record

THREAT, SIZE = PatchThreat(2, 2), (2, 10)
ATTACKS = (ExhaustivePGD(steps=4, rounds=0),)
FEW = Sampling(selection=60, estimation=600, prediction=300, alpha=0.01)
ASKED: set = set()  # global, since a class that holds what it was asked is another after each question
PREDICT = RandomizedClassifier.predict


def classifier(ablation=None, kind=RandomizedClassifier, options=FEW) -> RandomizedClassifier:
    """A random ablation votes for class 1 where it keeps a bright pixel."""
    return kind(Level(2), ablation or Columns(2), num_classes=2, sampling=options, views=64).eval()


def nearly_dark(number=16):
    """Images of ten columns with one or two of them grey to white, far apart: class 0, and 2 to 4 of 10 bands say 1."""
    x = striped(10, 2)
    bright = x[:, 0, 0].sum(dim=1)
    x = x[(bright >= 1) & (bright <= 2)][:number].repeat(2, 1, 1, 1)[:number]
    return x * (torch.linspace(0.7, 1, number)[:, None, None, None] * 255).round() / 255


def run(model, x, output, attacks=ATTACKS):
    settings = Settings(len(x), 8, certified_budget=None)
    records = evaluate(model, image_set(x, torch.zeros(len(x), dtype=torch.long), 2), THREAT, attacks, settings, output)
    return records, summarise(records)


def noted(self, x):
    """What a randomized classifier predicts; of a referee, which samples anew, the images are kept in ASKED."""
    if self.sampling.seed != FEW.seed:
        ASKED.update(image_keys(x))
    return PREDICT(self, x)


def text(summary) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(summary_table(summary, title="t", guard=1e-4, deviation=None, seconds=1.0))
    return console.export_text()


@pytest.mark.parametrize("ablation", [Columns(2), SparseAblation(4)], ids=str)
@pytest.mark.parametrize(
    ("module", "name", "bug"),
    [
        (randomized, "touched_chance", lambda *_: 0.0),
        (sampling, "lower_bound", lambda hits, number, alpha: hits.double() / number + 0.4),
    ],
)
def test_a_planted_bug_breaks_the_verdict(ablation, module, name, bug, tmp_path, monkeypatch):
    """τ forgotten, or a bound that is none: many certified predictions change, and the verdict says so; without the
    bug, the same images hold. Every counterexample stands when it is replayed.
    """
    x, model = nearly_dark(), classifier(ablation)
    if isinstance(ablation, SparseAblation):
        x = x * 0 + torch.linspace(0, 0.4, len(x))[:, None, None, None]  # dark: p = 1, and 64% keep a pixel of four
    _, summary = run(model, x, tmp_path / "sound")
    assert summary.verdict == ("held" if summary.certified_images else "not tested")
    assert summary.violations == []
    assert summary.allowance.changed == 0
    assert summary.allowance.probability == 1.0
    monkeypatch.setattr(module, name, bug)
    records, summary = run(model, x, tmp_path / "planted")
    assert summary.verdict == "broken"
    assert summary.allowance.changed > summary.allowance.most
    assert summary.allowance.probability < LEVEL
    assert "BROKEN: " in text(summary)
    files = sorted((tmp_path / "planted" / "counterexamples").iterdir())
    assert {load_counterexample(file).index for file in files} == {r.index for r in records if r.violations}
    for file in files[:3]:
        outcome, certified = replay(load_counterexample(file), model)
        assert outcome.broken.all()
        assert certified


class WrongOnce(RandomizedClassifier):
    """Certifies one image that it should not, as any randomized classifier may."""

    def certify(self, x, threat):
        found = super().certify(x, threat)
        wrong = x[:, 0, 0, 5] == 1
        return replace(
            found,
            prediction=torch.where(wrong, 0, found.prediction),
            certified=found.certified | wrong,
            margin=torch.where(wrong, 0.01, found.margin),
        )


def test_what_the_confidence_allows_is_held_and_counted(tmp_path):
    """One wrong certificate of 20 images at 1%, P = 0.18: verdict held, with the count and a counterexample."""
    x = torch.zeros(20, 1, *SIZE)
    x[1:, :, :, 1:] = (torch.arange(19)[:, None, None, None] + 1) / 255
    x[0, :, :, [0, 5]] = 1
    records, summary = run(classifier(kind=WrongOnce), x, tmp_path)
    assert summary.verdict == "held"
    assert summary.violations == [{"index": 0, "attack": "exhaustive"}]
    allowed = summary.allowance
    assert (allowed.changed, allowed.images, allowed.confidence) == (1, 20, 0.99)
    assert allowed.error == pytest.approx(0.01 + 0.001)
    assert allowed.probability == pytest.approx(1 - 0.989**20)
    assert (records[0].confidence, records[0].error, records[0].consistent) == (0.99, allowed.error, True)
    assert read_records(tmp_path) == records
    (file,) = (tmp_path / "counterexamples").iterdir()
    outcome, certified = replay(load_counterexample(file), classifier(kind=WrongOnce))
    assert outcome.broken.all()
    assert certified
    shown = " ".join(text(summary).split())
    assert "certified at 99%" in shown
    assert "HELD: 1 certified prediction was changed (images 0), where an error of at most 1.100% an image" in shown
    assert f"allows {allowed.most} of 20 (P ≤ 0.2 for so many)" in shown
    out = json.loads(json.dumps(summary.as_dict()))["allowance"]
    assert out["changed"] == 1


def test_the_error_adds_up(tmp_path):
    """Of a sparse classifier each judged prediction may err too: α of the certificate, of `predict`, of the referee
    for the clean image and for two attacks.
    """
    attacks = (ExhaustivePGD(steps=1, rounds=0), ExhaustivePGD(steps=1, rounds=0, stride=2))
    records, _ = run(classifier(SparseAblation(2)), torch.zeros(2, 1, *SIZE), tmp_path, attacks)
    assert [r.error for r in records] == pytest.approx([0.01 + 4 * 0.001] * 2)
    assert [r.confidence for r in records] == [0.99] * 2


def test_the_error_counts_all_that_the_referee_is_asked(tmp_path, monkeypatch):
    """An ensemble has every member's proposal judged before it picks one: each may be wrong, and each is counted."""
    monkeypatch.setattr(RandomizedClassifier, "predict", noted)
    ASKED.clear()
    members = (PatchPGD(steps=1, restarts=1), PatchPGD(steps=2, restarts=1), ExhaustivePGD(steps=1, rounds=0))
    attacks = (Ensemble((Ensemble(members[:2], "two"), members[2]), "three"),)
    records, _ = run(classifier(SparseAblation(2)), torch.zeros(1, 1, *SIZE), tmp_path, attacks)
    assert len(ASKED) == 1 + 3
    assert [r.error for r in records] == pytest.approx([0.01 + 0.001 + 0.001 * len(ASKED)])


def test_predictions_of_a_randomized_classifier(tmp_path):
    """`predict`'s, abstentions too, but where certified the certificate's; an abstention contradicts nothing."""
    few = replace(FEW, prediction=10)  # too few to be sure of anything
    x = nearly_dark(12)
    x[0] = 0
    model = classifier(options=few)
    records, _ = run(model, x, tmp_path)
    assert set(predict(model, x).tolist()) <= {-1, 0}
    assert any(r.prediction == -1 and not r.attacks for r in records)
    assert records[0].certified
    assert records[0].prediction == 0
    assert all(r.consistent for r in records)

    class Contrary(RandomizedClassifier):
        def predict(self, x):
            return torch.ones(len(x), dtype=torch.long)

        def referee(self):
            return super().referee()

    x = torch.zeros(4, 1, *SIZE) + torch.arange(4)[:, None, None, None] / 255
    records, summary = run(
        classifier(kind=Contrary, options=replace(FEW, alpha=1e-4, alpha_prediction=1e-4)), x, tmp_path / "c"
    )
    assert [r.violations for r in records] == [["predict"]] * 4
    assert summary.verdict == "broken"
    for file in (tmp_path / "c" / "counterexamples").iterdir():
        assert replay(load_counterexample(file), classifier(kind=Contrary))[0].broken.all()
        assert not replay(load_counterexample(file), classifier())[0].broken.any()


def with_confidence(changed: int, number: int, error: float, **options):
    """Records of so many certified images, the first of them changed."""
    return [
        replace(
            record(i, exact=True, margin=None, attacks=[attack(unpruned=True, broken=i < changed)]),
            confidence=0.95,
            error=error,
            **options,
        )
        for i in range(number)
    ]


@pytest.mark.parametrize(("number", "error"), [(12, 0.05), (40, 0.051), (3, 0.2), (9, 1.0)])
def test_the_tail_by_hand(number, error):
    """P(Bin(n, error) ≥ k), term by term; broken exactly where it is below 0.001; `most` is the largest that is not."""
    verdicts = []
    for changed in range(number + 1):
        summary = summarise(with_confidence(changed, number, error))
        tail = sum(comb(number, k) * error**k * (1 - error) ** (number - k) for k in range(changed, number + 1))
        assert summary.allowance.probability == pytest.approx(tail, rel=1e-7)
        unbroken = "not tested" if error**number >= 0.001 else "held"  # where all may change, nothing is a break
        assert summary.verdict == ("broken" if tail < 0.001 else unbroken)
        assert (changed > summary.allowance.most) == (tail < 0.001)
        verdicts.append(summary.verdict)
    assert verdicts == sorted(verdicts, reverse=True)


def test_images_that_are_not_certified_count_among_those_that_may_err():
    """Certificates of images at the edge are all wrong, however few are given: 3 of 3 is no more than 3 of 100."""
    records = with_confidence(3, 3, 0.05)
    assert summarise(records).verdict == "broken"
    rest = [replace(record(3 + i), confidence=0.95, error=0.05) for i in range(97)]
    assert summarise([*records, *rest]).verdict == "held"


def test_one_image_counts_once_and_proofs_have_no_allowance():
    """Changed by two attacks it is one image; a certificate without a confidence breaks with the first."""
    twice = [attack(unpruned=True, broken=True), attack("b", unpruned=True, broken=True)]
    records = [replace(one, attacks=twice) for one in with_confidence(1, 20, 0.05)]
    assert len(summarise(records[:1]).violations) == 2
    assert summarise(records[:1]).allowance.changed == 1
    proof = record(20, exact=True, margin=None, attacks=[attack(unpruned=True, broken=True)])
    assert summarise([*with_confidence(0, 20, 0.05), proof]).verdict == "broken"
    assert summarise([proof]).allowance is None


def test_untested_and_changed():
    """What is not attacked in full is not held; the count is shown all the same."""
    pruned = replace(with_confidence(1, 1, 0.05)[0], index=9, attacks=[attack(unpruned=False)])
    summary = summarise([*with_confidence(1, 9, 0.05), pruned])
    assert summary.verdict == "not tested"
    assert "NOT TESTED: 1 certified prediction was changed" in " ".join(text(summary).split())


QUICK = ["--attacks", "pgd:1", "--steps", "1", "--certified-budget", "600", "--num-images", "6"]


def test_the_command_line_samples_a_checkpoint(checkpoint, tmp_path):
    """`--randomized`: the same checkpoint with top-1 votes, samples, alpha and seed as given, in the summary too."""
    given = ["--checkpoint", checkpoint, "--randomized", "--alpha", "0.001", "--samples", "500", "--seed", "4"]
    result = call(*given, *QUICK, "--patch", "2x2", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert "columns:2, top1, 500 samples" in " ".join(result.stdout.split())
    assert "certified at 99.9%" in result.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    wanted = Sampling(selection=50, estimation=500, alpha=0.001, seed=4)
    assert Sampling(**summary["configuration"]["sampling"]) == wanted
    assert (summary["configuration"]["voting"], summary["verdict"]) == ("top1", "held")
    assert summary["allowance"]["confidence"] == 0.999
    assert summary["certified_attacked"] == summary["certified_images"] > 0


def test_the_command_line_attacks_a_sparse_checkpoint(sparse, tmp_path):
    """A sparse checkpoint needs no option; its certificates are attacked without pruning, and counted."""
    given = ["--checkpoint", sparse, "--samples", "400", "--ablation", "sparse:5", *QUICK, "--certified-budget", 2_500]
    result = call(*given, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert "sparse:5, top1, 400 samples" in " ".join(result.stdout.split())
    assert "HELD: " in result.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["configuration"]["ablation"] == "sparse:5"
    assert summary["certified_attacked"] == summary["certified_images"] > 0
    assert summary["allowance"]["error"] == pytest.approx(0.05 + 3 * 0.001)
    assert summary["measured_deviation"] <= 1e-4


def test_a_bug_ends_with_status_1_and_is_replayed(sparse, tmp_path, monkeypatch):
    """With a bound of two, every image is certified, patches change some, and --replay shows them again."""
    monkeypatch.setattr(sampling, "lower_bound", lambda hits, number, alpha: 2.0 + 0 * hits.double())
    given = ["--checkpoint", sparse, "--samples", "300", "--alpha", "0.0001", "--attacks", "pgd:1"]
    given += ["--steps", 2, "--certified-budget", 0, "--patch", "24x24", "--num-images", 2]
    result = call(*given, "--output", tmp_path)
    assert result.exit_code == 1, result.output
    assert "BROKEN: " in result.stdout
    file = sorted((tmp_path / "counterexamples").iterdir())[0]
    again = call("--checkpoint", sparse, "--replay", file)
    assert again.exit_code == 1, again.output
    assert "a certificate may be wrong with a chance of 0.0001" in " ".join(again.stdout.split())
    assert "the counterexample stands" in again.stdout
    monkeypatch.undo()
    assert call("--checkpoint", sparse, "--replay", file).exit_code == 0


WRONG = {
    "alpha without samples": (["--alpha", "0.01"], "alpha is 0.01, but of checkpoint"),
    "samples without": (["--samples", "10"], "drop --samples, or sample its ablations with --randomized"),
    "alpha": (["--randomized", "--alpha", "2"], "alpha is 2.0; it is the chance of an error"),
    "samples": (["--randomized", "--samples", "0"], "samples is 0; it must be at least 1"),
    "theta": (["--randomized", "--theta", "0.3"], "theta is 0.3, but randomized certificates are of top-1 votes; drop"),
    "voting": (["--randomized", "--voting", "scores"], "voting is scores, but randomized certificates are of top-1"),
    "another": (["--ablation", "sparse:5"], "ablation is sparse:5, but checkpoint toy.safetensors was trained for col"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls(name, checkpoint, tmp_path):
    """One line: the parameter, the value, the remedy."""
    arguments, message = WRONG[name]
    refused(call("--checkpoint", checkpoint, "--num-images", 1, "--output", tmp_path / "out", *arguments), message)


def test_an_undefended_checkpoint_has_nothing_to_sample(undefended, tmp_path):
    """Neither ablations nor votes."""
    given = ["--checkpoint", undefended, "--num-images", 1, "--output", tmp_path / "out"]
    refused(call(*given, "--randomized"), "randomized is True, but checkpoint")
    refused(call(*given, "--samples", "5"), "samples is 5, but of checkpoint")
