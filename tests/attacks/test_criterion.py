"""When an attack has succeeded: each criterion by its definition, and attacks and the judge against brute force."""

from __future__ import annotations

import pytest
import torch

from attacks import ROA, Control, Ensemble, ExhaustivePGD, FromART, LaVAN, Oracle, PatchPGD, SparseRS, judge
from attacks.base import Proposal
from attacks.criterion import Became, Changed, NoAlert, OutOfTopK, as_criterion
from evaluate import Settings, evaluate
from evaluate.results.metrics import summarise
from robustpatch.ablations.kinds import Columns
from robustpatch.certificates.top_k import TopKCertificate, ranks
from robustpatch.classifiers.base import Classifier
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import TopOne
from tests.attacks.toys import Level, Lookup, Plain, images, smoothed, worlds
from tests.evaluate.planted import image_set

ONE = PatchThreat(1, 1)
Y = torch.tensor([0, 1, 2, 2])
PREDICTION = torch.tensor([0, 2, -1, 1])


def test_each_says_what_its_definition_says():
    counts = torch.tensor([[3, 2, 1], [1, 1, 1], [5, 4, 3], [2, 2, 2]])
    assert Changed(Y).broken(PREDICTION, None).tolist() == [False, True, True, True]
    assert Became(Y, (Y + 1) % 3).broken(PREDICTION, None).tolist() == [False, True, False, False]
    assert NoAlert(Y).broken(PREDICTION, None).tolist() == [False, True, False, True]
    assert NoAlert(Y, alert=1).broken(PREDICTION, None).tolist() == [False, True, True, False]
    assert OutOfTopK(Y, 2).broken(PREDICTION.clamp(min=0), counts).tolist() == [False, False, True, True]
    assert OutOfTopK(Y, 3).broken(PREDICTION, counts).tolist() == [False, False, True, False]  # one abstains
    assert (
        OutOfTopK(Y, 1).broken(counts.argmax(1), counts).tolist() == Changed(Y).broken(counts.argmax(1), None).tolist()
    )
    with pytest.raises(InvalidInput, match="k is 0"):
        OutOfTopK(Y, 0)


def test_labels_stand_for_changed_and_rows_are_taken():
    assert isinstance(as_criterion(Y), Changed)
    some = Became(Y, Y + 1).of(torch.tensor([1, 3]))
    assert some.y.tolist() == [1, 2]
    assert some.target.tolist() == [2, 3]
    assert as_criterion(some) is some


def scene(classes: int = 4, seed: int = 0):
    """A voting classifier over columns of small binary images, and the counts under every patch of zeros and ones."""
    base = Lookup(seed, 2 * 2 * 6, classes, favour=2.0)
    base.table[:, 3 - seed] += 2.0
    model, x = smoothed(base, Columns(2), classes, TopOne(0.0)), images(2, (2, 6), seed=seed, binary=True)
    everywhere = [model.votes(worlds(image, ONE)).counts for image in x]
    return model, x, everywhere


@pytest.mark.parametrize("kind", ["changed", "became", "out"])
def test_the_oracle_and_the_searches_find_what_brute_force_finds(kind):
    model, x, everywhere = scene()
    y = model.predict(x)
    second = torch.stack([counts.float().mean(0).scatter(0, y[i], -1).argmax() for i, counts in enumerate(everywhere)])
    criterion = {"changed": Changed(y), "became": Became(y, second), "out": OutOfTopK(y, 2)}[kind]
    truth = []
    for i, counts in enumerate(everywhere):
        rows = torch.full((len(counts),), i)
        truth.append(bool(criterion.of(rows).broken(counts.argmax(1), counts).any()))
    chance = torch.Generator().manual_seed(0)
    found = judge(model, x, criterion, ONE, Oracle()(model, x, criterion, ONE, generator=chance)).broken
    assert found.tolist() == truth
    assert any(truth)
    for attack in (SparseRS(queries=40, touched_only=False), SparseRS(queries=40)):
        proposal = attack(model, x, criterion, ONE, generator=torch.Generator().manual_seed(1))
        broken = judge(model, x, criterion, ONE, proposal).broken
        assert not (broken & ~torch.tensor(truth)).any()
        assert torch.equal(broken, proposal.broken | broken)


@pytest.mark.parametrize("touched_only", [False, True])
@pytest.mark.parametrize(
    "attack", [PatchPGD(restarts=4, steps=8), ExhaustivePGD(steps=4, rounds=1)], ids=["pgd", "all"]
)
def test_gradients_drive_a_class_out_of_the_top_k(attack, touched_only):
    """Every pixel of a dark image is 0: each ablation votes 0. Two rivals must come before it, by different columns."""
    model = smoothed(Level(3), Columns(1), 3, TopOne(0.0))
    x, y = torch.zeros(1, 1, 1, 4), torch.zeros(1, dtype=torch.long)
    two = PatchThreat(1, 3)
    attack = type(attack)(**{**vars(attack), "touched_only": touched_only})
    for k, possible in ((1, True), (2, False)):  # of three columns two must outvote one each, and one is left for y
        criterion = OutOfTopK(y, k)
        truth = any(bool((ranks(model.votes(w[None]).counts, y) >= k).any()) for w in _grid())
        assert truth is possible
        proposal = attack(model, x, criterion, two, generator=torch.Generator().manual_seed(0))
        assert bool(judge(model, x, criterion, two, proposal).broken[0]) is truth


@pytest.mark.parametrize(
    "attack",
    [
        PatchPGD(restarts=2, steps=8),
        LaVAN(steps=30),
        ROA(search="gradient", steps=8),
        Ensemble((Control(content="noise", tries=3), PatchPGD(restarts=2, steps=8)), "two"),
        FromART.named("ProjectedGradientDescent", kind="mask", targeted=True, tries=2, eps=1.0, max_iter=9),
    ],
    ids=lambda attack: attack.name,
)
def test_searches_go_to_the_class_of_the_criterion(attack):
    """A linear classifier, every pixel in the attacker's hand: each class can be had, and none but it counts."""
    model, x = Plain(20, classes=4).eval(), images(3, (4, 5))
    y = model(x).argmax(1)
    for step in (1, 2, 3):
        target = (y + step) % 4
        criterion = Became(y, target)
        found = attack(model, x, criterion, PatchThreat(4, 5), generator=torch.Generator().manual_seed(0))
        outcome = judge(model, x, criterion, PatchThreat(4, 5), found)
        assert torch.equal(outcome.broken, outcome.prediction == target)
        assert outcome.broken.all()


def _grid():
    levels = torch.cartesian_prod(*[torch.linspace(0, 1, 3)] * 3)
    return [
        torch.cat([torch.roll(torch.cat([row, row.new_zeros(1)]), s)])[None, None] for row in levels for s in (0, 1)
    ]


class Lying(SmoothedClassifier):
    """Certifies every label that is among the top k."""

    def certify_top_k(self, x, y, threat, k):
        clean = ranks(self.votes(x).counts, y) < k
        margin = torch.where(clean, 0, -1)
        return TopKCertificate(y, k, clean, clean, margin, threat, 1, 0.0)


@pytest.mark.parametrize("lies", [False, True])
def test_certified_top_k_is_attacked_through_the_evaluator(lies, tmp_path):
    """A true certificate holds; a false one is broken, and its counterexample is shown again."""
    honest, x, everywhere = scene(seed=1)
    options = {"num_classes": 4, "voting": TopOne(0.0)}
    model = (Lying if lies else SmoothedClassifier)(honest.base, honest.ablation, **options).eval()
    labels = torch.stack([counts.float().mean(0).topk(2).indices[1] for counts in everywhere])  # a second class
    settings = Settings(len(x), gallery=0, top_k=2)
    records = evaluate(model, image_set(x, labels, 4), ONE, [SparseRS(queries=100)], settings, tmp_path)
    truth = [
        bool((ranks(c, torch.full((len(c),), int(y))) >= 2).any()) for c, y in zip(everywhere, labels, strict=True)
    ]
    assert not any(record.certified_exact and truth[record.index] for record in records) or lies
    broken = [record.index for record in records if any(a.broken for a in record.attacks)]
    assert all(truth[i] for i in broken)
    certified = any(record.certified_exact for record in records)  # or there is nothing to hold
    assert summarise(records).verdict == ("broken" if lies else "held" if certified else "not tested")


def test_a_classifier_without_such_a_certificate_refuses():
    class Alone(Classifier):
        num_classes = 2

        def predict(self, x):
            return torch.zeros(len(x), dtype=torch.long)

    data = image_set(torch.zeros(1, 1, 3, 3), torch.zeros(1).long(), 2)
    with pytest.raises(InvalidInput, match="top_k is 2"):
        evaluate(Alone().eval(), data, ONE, [], Settings(1, top_k=2), "memory://none")


def test_a_proposal_that_only_reaches_another_class_is_not_became():
    model = smoothed(Level(3), Columns(1), 3, TopOne(0.0))
    x, y = torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.long)
    corners, none = torch.zeros(1, 1, 2, dtype=torch.long), torch.zeros(1)
    proposal = Proposal(torch.ones_like(x), corners, none.long(), none)
    assert judge(model, x, y, ONE, proposal).broken.all()
    assert judge(model, x, Became(y, y + 2), ONE, proposal).broken.all()
    assert not judge(model, x, Became(y, y + 1), ONE, proposal).broken.any()
