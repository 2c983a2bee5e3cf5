"""Whole tiny classifiers against every patch: certified means that none succeeds, and no attack beats the oracle."""

from __future__ import annotations

import pytest
import torch

from attacks import ExhaustivePGD, Oracle, PatchPGD, judge
from robustpatch.ablations.kinds import Blocks, Columns, GridBlocks, GridColumns, Rows
from robustpatch.threats.any_of import AnyOf
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Threshold, TopOne
from tests.attacks.toys import Lookup, flipped, images, smoothed

P = PatchThreat
EITHER = AnyOf([P(1, 2), P(2, 1)])
CASES = [
    (Columns(1), (4, 5), P(2, 1), 3),
    (Columns(2), (4, 7), P(1, 1), 4),
    (Columns(1, 2), (4, 5), P(1, 1), 3),
    (Columns(2, 2), (2, 7), P(1, 1), 3),
    (Rows(1), (5, 4), P(1, 2), 4),
    (Rows(2), (7, 3), P(1, 1), 3),
    (Rows(2, 2), (7, 3), P(1, 1), 2),
    (Blocks(1), (4, 4), P(2, 1), 3),
    (Blocks(1), (4, 5), P(2, 2), 4),
    (Blocks(2), (5, 4), P(1, 2), 3),
    (Blocks(2), (5, 5), P(1, 1), 4),
    (Blocks(1, 2), (4, 5), P(2, 1), 3),
    (Blocks(2, 1, 2), (5, 5), P(1, 1), 3),
    (Blocks(1), (4, 4), P(1, 1, 2), 3),
    (Columns(1), (2, 6), P(1, 1, 2), 3),
    (Blocks(1), (4, 4), EITHER, 3),
    (Columns(1), (3, 6), EITHER, 4),
    (GridColumns(1, 2), (4, 6), P(1, 1), 3),
    (GridColumns(2, 2), (2, 9), P(1, 1), 3),
    (GridBlocks(2, 2), (5, 5), P(1, 1), 3),
    (GridBlocks(1, 2), (3, 4), P(1, 1), 4),
]


def classifier(ablation, size, classes, seed, voting):
    """More and more of one mind from seed to seed: the first votes are scattered, the last nearly unanimous."""
    return smoothed(Lookup(seed, 2 * size[0] * size[1], classes, favour=1.2 * seed), ablation, classes, voting)


@pytest.mark.parametrize("voting", [TopOne(0.0), Threshold(0.3, 0.0)], ids=str)
@pytest.mark.parametrize(("ablation", "size", "threat", "classes"), CASES, ids=str)
def test_no_patch_changes_a_certified_image(ablation, size, threat, classes, voting):
    """Every content of zeros and ones at every placement fails on what exact and margin certify, at guard 0.

    Over the seeds some images are certified and some flipped, so that the test says something.
    """
    proved, fallen = [], []
    for seed in range(6):
        model, x = classifier(ablation, size, classes, seed, voting), images(4, size, seed=seed, binary=True)
        exact, margin = (model.certify(x, threat, method).certified for method in ("exact", "margin"))
        truth = torch.stack([flipped(model, x, one) for one in threat.threats]).any(dim=0)
        assert not (exact & truth).any(), (seed, exact, truth)
        assert not (margin & ~exact).any()
        proved += exact.tolist()
        fallen += truth.tolist()
    assert any(proved)
    assert not all(proved)
    assert any(fallen)


@pytest.mark.parametrize("voting", [TopOne(0.0), Threshold(0.3, 0.0)], ids=str)
@pytest.mark.parametrize(
    ("ablation", "size", "threat", "classes"), [case for case in CASES if case[2] is not EITHER], ids=str
)
def test_no_attack_beats_the_oracle(ablation, size, threat, classes, voting):
    """Where patches of zeros and ones are all there are, an attack breaks only what the oracle breaks."""
    oracle, stronger = Oracle(), []
    attacks = [PatchPGD(steps=1, restarts=4), PatchPGD(steps=1, restarts=4, touched_only=False)]
    if threat.count == 1:  # several patches begin as grey ones, which are no zeros and ones
        attacks += [ExhaustivePGD(steps=1, rounds=0), ExhaustivePGD(steps=1, rounds=0).unpruned(None)]
    for seed in range(2):
        model, x = classifier(ablation, size, classes, seed, voting), images(3, size, seed=seed, binary=True)
        y, generator = model.predict(x), torch.Generator().manual_seed(seed)
        best = judge(model, x, y, threat, oracle(model, x, y, threat, generator=generator)).broken
        assert torch.equal(best, flipped(model, x, threat))
        for attack in attacks:
            found = judge(model, x, y, threat, attack(model, x, y, threat, generator=generator)).broken
            assert not (found & ~best).any(), attack
            stronger += (best & ~found).tolist()
    assert len(stronger) == 2 * 3 * len(attacks)


def test_the_exhaustive_search_finds_most_of_what_there_is():
    """On small classifiers with nothing to climb, the searches by chance alone break much of what can be broken."""
    found = there = 0
    for seed in range(6):
        model, x, threat = classifier(Blocks(2), (5, 5), 3, seed, TopOne(0.0)), images(4, (5, 5), binary=True), P(1, 1)
        y = model.predict(x)
        attack = ExhaustivePGD(steps=1, rounds=2, keep=1.0)
        found += int(judge(model, x, y, threat, attack(model, x, y, threat, generator=torch.Generator())).broken.sum())
        there += int(flipped(model, x, threat).sum())
    assert there > 0
    assert found >= 0.6 * there
