"""Whole tiny classifiers against every patch, and against PGD at all placements, to drive a class out of the top k."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attacks import ExhaustivePGD, OutOfTopK, judge
from robustpatch.ablations.kinds import Blocks, Columns, GridColumns, Rows
from robustpatch.certificates.lead import ranks
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.threats.any_of import AnyOf
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Threshold, TopOne
from robustpatch.voting.scored import SummedScores
from tests.attacks.toys import Level, Lookup, images, smoothed, strip, worlds

P = PatchThreat
EITHER = AnyOf([P(1, 2), P(2, 1)])
CASES = [
    (Columns(2), (3, 8), P(1, 1)),
    (Columns(2, 3), (2, 9), P(1, 2)),
    (Rows(2), (9, 2), P(1, 1)),
    (Blocks(2), (5, 5), P(1, 1)),
    (Blocks(1), (4, 4), P(1, 1, 2)),
    (Columns(1), (3, 8), EITHER),
    (GridColumns(2, 2), (2, 9), P(1, 1)),
]
RULES = [TopOne(0.0), Threshold(0.3, 0.0), Threshold(0.45, 0.0), SummedScores(0.0)]


@pytest.mark.parametrize("voting", RULES, ids=str)
@pytest.mark.parametrize(("ablation", "size", "threat"), CASES, ids=str)
def test_no_patch_drives_a_certified_class_out(ablation, size, threat, voting):
    """Arbitrary functions of what each ablation sees, every content of zeros and ones at every placement, every class
    and k: certified never falls. Some are certified and some fall, so that the test says something.
    """
    proved = fallen = beyond_one = 0
    y = torch.arange(4).repeat(2)
    for seed in range(3):
        base = Lookup(seed, 2 * size[0] * size[1], 4, favour=3.0 * seed)
        base.table[:, 3 - seed] += 3.0 * seed  # a second class that many ablations name
        model, x = smoothed(base, ablation, 4, voting), images(2, size, seed=seed, binary=True)
        worst = torch.cat([_worst_ranks(model, image, threat) for image in x])
        for k in (1, 2, 3):
            found = model.certify_top_k(x.repeat_interleave(4, dim=0), y, threat, k)
            assert not (found.certified & (worst >= k)).any(), (seed, k)
            assert (found.clean | (worst >= k)).all()
            proved += int(found.certified.sum())
            fallen += int((found.clean & (worst >= k)).sum())
            beyond_one += int((found.certified & (worst > 0)).sum())
    assert min(proved, fallen, beyond_one) > 0


def _worst_ranks(model: SmoothedClassifier, image: Tensor, threat: PatchThreat | AnyOf) -> Tensor:
    """The last rank of each class [K] over all patches of zeros and ones."""
    counts = torch.cat([model.votes(worlds(image, one)).counts for one in threat.threats])
    return torch.stack([ranks(counts, torch.full((len(counts),), y)).amax() for y in range(counts.shape[1])])


@pytest.mark.parametrize(
    ("kind", "voting"), [("level", Threshold(0.2)), ("level", SummedScores()), ("strip", TopOne())], ids=str
)
def test_gradients_never_drive_a_certified_class_out(kind, voting):
    """Networks with something to climb: PGD at every placement succeeds, but on no certified image."""
    size, broken, certified, attack = (2, 10), 0, 0, ExhaustivePGD(steps=6, rounds=0).unpruned(None)
    x = images(6, size, seed=5)
    if kind == "level":
        model, x = smoothed(Level(4), Columns(1), 4, voting), x * torch.linspace(0.2, 1, 6)[:, None, None, None]
    else:
        model = strip(size, classes=4)
        with torch.no_grad():  # no class the winner of all images
            model.base.head[-1].bias -= model.logits(images(8, size)).mean(dim=(0, 1))
    for k in (1, 2, 3):
        for threat in (P(1, 1), P(2, 3)):
            order = model.votes(x).counts.argsort(dim=1, descending=True, stable=True)
            for y in (order[:, 0], order[:, k - 1]):
                proved = model.certify_top_k(x, y, threat, k)
                assert proved.clean.all()
                criterion = OutOfTopK(y, k)
                found = attack(model, x, criterion, threat, generator=torch.Generator().manual_seed(0))
                out = judge(model, x, criterion, threat, found).broken
                assert not (out & proved.certified).any()
                broken += int(out.sum())
                certified += int(proved.certified.sum())
    assert min(broken, certified) > 0
