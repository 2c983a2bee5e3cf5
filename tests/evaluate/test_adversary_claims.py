"""What certificates and confidences claim: verdicts that could once be had by contradicting or silent claims."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import prod

import pytest
import torch

from attacks import Ensemble, SparseRS
from evaluate import summarise
from evaluate.results.metrics import LEVEL
from evaluate.results.sentences import verdict
from evaluate.runs.records import read_records
from robustpatch.ablations.kinds import Columns
from robustpatch.certificates.randomized import Sampling
from robustpatch.classifiers.randomized import RandomizedClassifier
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.errors import InvalidInput
from tests.as_evaluator import referee
from tests.attacks.scribblers import claim
from tests.attacks.toys import Level
from tests.evaluate.foreign import ONE, PGD, RANDOM, Bright, run, scores
from tests.evaluate.planted import image_set
from tests.evaluate.results.test_metrics import attack, record

GREY = image_set(torch.full((4, 1, 4, 4), 0.3), torch.zeros(4).long(), 2)
BLACK = image_set(torch.zeros(3, 1, 4, 8), torch.zeros(3).long(), 2)


class TwoWays(SmoothedClassifier):
    """A margin certificate of its own: for another class, of the images from `first` on."""

    first = 0

    def certify(self, x, threat, method="exact"):
        found = super().certify(x, threat, method)
        if method == "exact":
            return found
        other = torch.arange(len(x)) >= self.first
        return replace(found, prediction=torch.where(other, 1 - found.prediction, found.prediction))


@pytest.mark.parametrize("first", [0, 2, 3])
def test_two_certificates_of_one_image_for_two_classes_are_refused(first, tmp_path):
    model = TwoWays(Level(2), Columns(1), num_classes=2).eval()
    model.first = first
    assert model.certify(BLACK.batch(range(3))[0], ONE, "margin").certified.all()
    if first == 3:
        assert run(model, tmp_path, RANDOM, data=BLACK).verdict == "held"
        return
    with pytest.raises(InvalidInput, match=f'image {first} of a batch for class 0 by the method "exact" and for class'):
        run(model, tmp_path, RANDOM, data=BLACK)


class OnlyByMargin(TwoWays):
    """Certifies nothing but by the margin, and there another class than it predicts."""

    def certify(self, x, threat, method="exact"):
        found = super().certify(x, threat, method)
        return replace(found, certified=torch.zeros_like(found.certified)) if method == "exact" else found


def test_a_margin_for_a_class_that_is_not_predicted_is_refused(tmp_path):
    model = OnlyByMargin(Level(2), Columns(1), num_classes=2).eval()
    model.first = 1
    with pytest.raises(
        InvalidInput, match=r'certifies image 1 of a batch for class 1 by the method "margin", but pred'
    ):
        run(model, tmp_path, RANDOM, data=BLACK)


class Confident(Bright):
    """Certifies class 0 of all images with a confidence, which is right; answers as `silent` says."""

    randomized = True

    def __init__(self, silent: str) -> None:
        super().__init__()
        self.silent = silent

    def forward(self, x):
        return scores(0 * x.sum((1, 2, 3)))

    def predict(self, x):
        shown = (x - 0.3).abs().amax((1, 2, 3)) > 0.2
        abstains = {"always": shown | True, "patched": shown, "clean": ~shown, "never": shown & False}
        return torch.where(abstains[self.silent], -1, 0)

    def certify(self, x, threat):
        return replace(claim(torch.zeros(len(x)).long(), threat), confidence=0.999)


@pytest.mark.parametrize(
    ("silent", "found", "clean"),
    [("always", "not tested", 0), ("patched", "not tested", 4), ("clean", "not tested", 0), ("never", "held", 4)],
)
def test_abstaining_is_no_answer(silent, found, clean, tmp_path):
    """Neither a correct one of a clean image nor a test of a certificate; and both are told."""
    summary = run(Confident(silent), tmp_path, SparseRS(queries=40), data=GREY)
    assert summary.verdict == found
    assert (summary.clean.hits, summary.certified_exact.hits) == (clean, clean)
    assert summary.certified_images == 4
    assert summary.certified_attacked == (4 if silent in ("patched", "never") else 0)
    assert ("4 abstentions" in str(verdict(summary))) == (silent in ("always", "patched"))
    for one in read_records(tmp_path):
        assert one.prediction == 0
        assert one.predicted == one.refereed == (-1 if silent in ("always", "clean") else 0)


def test_one_answer_under_a_patch_is_a_test():
    """Of two images under two attacks: abstentions alone test nothing, and what a control meets does not count."""
    silent = [replace(attack(name, unpruned=True), prediction=-1) for name in "ab"]
    for answered in (None, 0, 1, "grey"):
        attacks = [replace(one, prediction=0) if i == answered else one for i, one in enumerate(silent)]
        attacks += [attack("grey", unpruned=True)] if answered == "grey" else []
        some = [replace(record(i, exact=True, margin=None), confidence=0.99, error=0.01, predicted=0) for i in (0, 1)]
        records = [replace(some[0], attacks=silent), replace(some[1], attacks=attacks)]
        assert summarise(records).verdict == ("held" if answered in (0, 1) else "not tested")


class Stretched(RandomizedClassifier):
    """Turns what looks like a negative round before it predicts and certifies."""

    def predict(self, x):
        return super().predict(torch.where(x.amax((1, 2, 3), keepdim=True) > 0.9, 1 - x, x))

    def certify(self, x, threat):
        return super().certify(torch.where(x.amax((1, 2, 3), keepdim=True) > 0.9, 1 - x, x), threat)


class Refereed(Stretched):
    """The same with a referee that predicts as it does, from other samples."""

    def referee(self):
        sampling = replace(self.sampling, seed=self.sampling.seed + 1)
        return Stretched(self.base, self.ablation, num_classes=2, sampling=sampling).eval()


def randomized(kind):
    return kind(Level(2), Columns(1), num_classes=2, sampling=Sampling(100, 3000, 300, alpha=0.001)).eval()


def test_a_subclass_is_not_judged_by_its_parents_referee(tmp_path):
    """One that predicts in its own way has to say who judges it; then it is found out."""
    with pytest.raises(InvalidInput, match="Stretched overrides predict of RandomizedClassifier, but not referee"):
        run(randomized(Stretched), tmp_path, RANDOM, data=BLACK)
    assert run(randomized(Refereed), tmp_path / "refereed", RANDOM, data=BLACK).verdict == "broken"
    assert run(randomized(RandomizedClassifier), tmp_path / "parent", RANDOM, data=BLACK).verdict == "held"


@pytest.mark.parametrize("name", ["predict", "enumerated", "guard_on", "_draw"])
def test_whatever_decides_a_prediction_needs_a_referee(name):
    """In a class or on an object; a `certify` of its own decides none."""
    kind = type("Own", (RandomizedClassifier,), {name: lambda self, *given: getattr(super(kind, self), name)(*given)})
    with pytest.raises(InvalidInput, match=f"Own overrides {name} "):
        referee(randomized(kind))
    model = randomized(RandomizedClassifier)
    setattr(model, name, getattr(model, name))
    with pytest.raises(InvalidInput, match=f"overrides {name} "):
        referee(model)
    other = type("Own", (RandomizedClassifier,), {"certify": lambda self, x, threat: None})
    assert isinstance(referee(randomized(other)), SmoothedClassifier)


@pytest.mark.parametrize("attack", [replace(PGD, label="predict"), Ensemble((RANDOM,), "predict")], ids=["one", "all"])
def test_no_attack_is_named_predict(attack, tmp_path):
    """So the evaluator names a prediction that contradicts its own certificate: a real break was refused."""
    with pytest.raises(InvalidInput, match="an attack is named predict"):
        run(Bright(), tmp_path, attack)
    assert run(Bright(), tmp_path, Ensemble((RANDOM,), "predicted")).verdict == "broken"


def with_errors(errors, changed):
    """Certified images with these errors, the first of them changed."""
    one = record(0, exact=True, margin=None)
    return [
        replace(one, index=i, confidence=1 - error, error=error, attacks=[attack(unpruned=True, broken=i < changed)])
        for i, error in enumerate(errors)
    ]


def test_what_one_image_may_err_by_is_granted_to_no_other():
    """40 images certified at 99.9%, 20 of them changed, are broken whatever one more image is certified with."""
    for last in (0.001, 0.5, 0.9):
        summary = summarise(with_errors([0.001] * 40 + [last], 20))
        assert summary.verdict == "broken"
        assert summary.allowance.probability < 1e-40
        assert summary.allowance.most <= 2
        assert summary.allowance.error == last


@pytest.mark.parametrize("errors", [[0.3], [0.1, 0.5, 0.1, 0.9], [0.0, 0.2, 0.7, 0.2, 0.05], [1.0, 0.01], [0.0, 0.0]])
def test_the_chance_of_so_many_or_more(errors):
    """Against the sum over all ways in which the images may err."""
    for changed in range(len(errors) + 1):
        chance = 0.0
        for erred in product((False, True), repeat=len(errors)):
            if sum(erred) >= changed:
                chance += prod(e if wrong else 1 - e for e, wrong in zip(errors, erred, strict=True))
        found = summarise(with_errors(errors, changed)).allowance
        assert found.probability == pytest.approx(chance, abs=1e-12)
        assert (found.changed <= found.most) == (found.probability >= LEVEL)


class Counting(Confident):
    """Its referee counts what it is asked, on the model."""

    asked = 0

    def referee(self):
        self.asked += 1
        return Confident(self.silent).eval()


def test_a_referee_that_keeps_count_is_no_change_by_an_attack(tmp_path):
    """An ensemble asks the referee itself: what the model's own code changes then is not the attack's doing."""
    assert run(Counting("never"), tmp_path, Ensemble((SparseRS(queries=20),), "one"), data=GREY).verdict == "held"
