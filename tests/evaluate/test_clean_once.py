"""How often an image is scored clean: once by the certificate, once by `predict`, and not by each attack again."""

from __future__ import annotations

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


def scorings(*attacks) -> tuple[list[int], list]:
    """How often each image was scored clean by `evaluate_batch`, and its records."""
    model = Counting(Level(2), Columns(1), num_classes=2, voting=TopOne(0.0)).eval()
    y = model.predict(X)
    asked.clear()
    records = evaluate_batch(model, X, y, 0, ONE, attacks, Settings(3, gallery=0)).records
    assert not any(record.certified for record in records)
    assert all(len(record.attacks) == len(attacks) for record in records)
    return [asked.count(i) for i in range(3)], records


def test_attacks_on_what_is_not_certified_score_no_image_clean_again():
    """Twice in all: by `certify` and by `predict`, which must agree. Guided PGD took two more, Sparse-RS one."""
    first, second = PatchPGD(restarts=2, steps=2), SparseRS(queries=4)
    for attacks in ((), (first,), (first, second), (Ensemble(members=(first, second), label="both"),)):
        assert scorings(*attacks)[0] == [2, 2, 2]


def test_by_itself_an_attack_asks_once_and_is_charged_the_same():
    attack = PatchPGD(restarts=1, steps=1)
    model = Counting(Level(2), Columns(1), num_classes=2, voting=TopOne(0.0)).eval()
    y = model.predict(X)
    _, records = scorings(attack)
    asked.clear()
    proposal = attack(model, X, y, ONE, generator=torch.Generator().manual_seed(0))
    assert [asked.count(i) for i in range(3)] == [1, 1, 1]
    least = 2 * 6 + 1  # the votes, the certificate, and a try
    assert bool((proposal.evaluations >= least).all())
    assert all(record.attacks[0].evaluations >= least for record in records)


def test_what_is_certified_is_attacked_afresh():
    """All ablations of the clean image are asked again by each attack that tests a certificate."""
    model = Counting(Level(2), Columns(1), num_classes=2, voting=TopOne(0.0)).eval()
    dark = X / 4
    before = CLEAN.copy()
    CLEAN[:] = [image.numpy().tobytes() for image in dark]
    try:
        asked.clear()
        attacks = [PatchPGD(restarts=1, steps=1), SparseRS(queries=2)]
        records = evaluate_batch(model, dark, model.predict(dark), 0, ONE, attacks, Settings(3, gallery=0)).records
        assert all(record.certified for record in records)
        assert all(asked.count(i) >= 2 + len(attacks) for i in range(3))
    finally:
        CLEAN[:] = before
