"""Clean scorings of an image: one by the certificate, one by `predict`, and one by each attack on a certified image."""

from __future__ import annotations

import pytest
import torch

from attacks import Ensemble, PatchPGD, SparseRS
from evaluate.runs.batch import Settings, evaluate_batch
from robustpatch.ablations.kinds import Columns
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import TopOne
from tests.attacks.toys import Level

ONE = PatchThreat(1, 1)
X = torch.rand(3, 1, 2, 6, generator=torch.Generator().manual_seed(3)) / 3
X[:, :, :, 3:] += 2 / 3  # three columns vote for each class: nothing is certified
CLEAN = [image.numpy().tobytes() for image in X]
asked: list[int] = []  # of a clean image, all ablations


class Counting(SmoothedClassifier):
    """Notes the clean images of which all ablations are scored."""

    def logits(self, x, index=None):
        if index is None:
            asked.extend(CLEAN.index(one) for one in (row.detach().numpy().tobytes() for row in x) if one in CLEAN)
        return super().logits(x, index)


def scorings(*attacks, dark: bool = False) -> tuple[list[int], list]:
    """The clean scorings of each image by `evaluate_batch`, and its records; of `dark` images all are certified."""
    model, x = Counting(Level(2), Columns(1), num_classes=2, voting=TopOne(0.0)).eval(), X / 4 if dark else X
    y = model.predict(x)
    CLEAN[:] = [image.numpy().tobytes() for image in x]
    asked.clear()
    records = evaluate_batch(model, x, y, 0, ONE, attacks, Settings(3, gallery=0)).records
    assert all(record.certified == dark for record in records)
    assert all(len(record.attacks) == len(attacks) for record in records)
    return [asked.count(i) for i in range(3)], records


FIRST, SECOND = PatchPGD(restarts=2, steps=2), SparseRS(queries=4)
ATTACKS = [(), (FIRST,), (FIRST, SECOND), (Ensemble(members=(FIRST, SECOND), label="both"),)]


@pytest.mark.parametrize("attacks", ATTACKS[1:], ids=len)
def test_attacks_on_what_is_not_certified_score_no_image_clean_again(attacks):
    """Twice in all: by `certify` and by `predict`, which must agree. Guided PGD took two more, Sparse-RS one."""
    assert scorings(*attacks)[0] == [2, 2, 2]


@pytest.mark.parametrize("attacks", ATTACKS[1:], ids=len)
def test_what_is_certified_is_scored_clean_once_by_the_certificate_and_once_by_each_attack(attacks):
    """And once by `predict`: an attack that tests a certificate takes no answer from elsewhere."""
    searches = sum(getattr(attack, "judged", 1) for attack in attacks)
    assert scorings(*attacks, dark=True)[0] == [2 + searches] * 3


def test_without_attacks_predict_is_asked_about_a_sample_of_the_images():
    """Both answers are made of the same scores; what is asked twice is asked to see that they are."""
    assert scorings()[0] == [2, 1, 1]


class Contradicting(SmoothedClassifier):
    """Its `predict` is not what `certify` says, of the last image alone."""

    def predict(self, x):
        answer = super().predict(x)
        answer[-1] = 1 - answer[-1]
        return answer


def test_a_predict_of_ones_own_is_asked_about_every_image():
    model = Contradicting(Level(2), Columns(1), num_classes=2, voting=TopOne(0.0)).eval()
    records = evaluate_batch(model, X / 4, torch.zeros(3, dtype=torch.long), 0, ONE, (), Settings(3, gallery=0)).records
    assert [record.consistent for record in records] == [True, True, False]


def test_by_itself_an_attack_asks_once_and_is_charged_the_same():
    attack = PatchPGD(restarts=1, steps=1)
    _, records = scorings(attack)
    model = Counting(Level(2), Columns(1), num_classes=2, voting=TopOne(0.0)).eval()
    y = model.predict(X)
    asked.clear()
    proposal = attack(model, X, y, ONE, generator=torch.Generator().manual_seed(0))
    assert [asked.count(i) for i in range(3)] == [1, 1, 1]
    least = 2 * 6 + 1  # the votes, the certificate, and a try
    assert bool((proposal.evaluations >= least).all())
    assert all(record.attacks[0].evaluations >= least for record in records)
