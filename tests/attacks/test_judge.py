"""The judge counts nothing but a changed prediction by one patch inside the threat."""

from __future__ import annotations

import pytest
import torch

from attacks import Proposal, judge
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat

THREAT = PatchThreat(2, 3)
SIZE = (6, 8)


class Sum(torch.nn.Module):
    """Class 1 for any pixel that is not black, -1 (abstained) for a pixel of exactly one quarter."""

    def predict(self, x):
        changed = (x != 0).flatten(1).any(dim=1).long()
        return torch.where((x == 0.25).flatten(1).any(dim=1), -1, changed)


class ByChance(Sum):
    """The same, which declares that chance has a part in its predictions."""

    randomized = True


def verdict(corners, pixels, *, value=1.0, threat=THREAT, channels=1, size=SIZE, model=None):
    """Judge a black image of class 0 on which `pixels` (channel, row, column) were changed to `value`."""
    x = torch.zeros(1, channels, *size)
    x_adv = x.clone()
    for pixel in pixels:
        x_adv[0][pixel] = value
    corners = torch.tensor(corners).reshape(1, threat.count, 2)
    proposal = Proposal(x_adv, corners, torch.zeros(1, dtype=torch.long), torch.zeros(1))
    return judge(model or Sum().eval(), x, torch.zeros(1, dtype=torch.long), threat, proposal)


ONE, TWO, WIDE, TALL = THREAT, PatchThreat(2, 3, 2), PatchThreat(2, 6), PatchThreat(6, 2)
FLAT, UPRIGHT = [(0, r, c) for r in range(2) for c in range(6)], [(0, c, r) for r in range(2) for c in range(6)]
APART = [(0, 1, 2), (0, 5, 7)]
INSIDE = [
    *(([1, 2], [pixel], ONE) for pixel in ((0, 1, 2), (0, 1, 4), (0, 2, 2), (0, 2, 4))),  # each corner of it
    *((corner, [(0, *corner)], ONE) for corner in ([4, 5], [0, 0], [4, 0], [0, 5])),  # at the border of the image
    *(([1, 2], [(channel, 1, 2)], ONE) for channel in range(3)),
    ([0, 0], FLAT, WIDE),
    ([0, 0], UPRIGHT, TALL),
    ([[0, 0], [4, 5]], APART, TWO),
    ([[0, 0], [0, 0]], [(0, 1, 2)], TWO),
]
OUTSIDE = [
    *(([1, 2], [(0, 1, 2), (0, *pixel)], ONE) for pixel in ((0, 2), (3, 2), (1, 1), (1, 5), (2, 5), (5, 7), (0, 0))),
    ([0, 0], [(0, r, c) for r in (3, 4) for c in (2, 3, 4)], ONE),  # of the right size, elsewhere
    # A rectangle that leaves the image, even where the changed pixel lies in both.
    *((corner, [(0, min(max(corner[0], 0), 5), min(max(corner[1], 0), 7))], ONE)
      for corner in ([-1, 0], [0, -1], [5, 0], [0, 6], [100, 100])),
    *(([1, 2], [(channel, 0, 2)], ONE) for channel in range(3)),
    ([0, 0], UPRIGHT, WIDE),
    ([0, 0], FLAT, TALL),
    ([[0, 0], [0, 0]], APART, TWO),
    ([[0, 0], [0, 6]], [(0, 1, 2)], TWO),
]  # fmt: skip


@pytest.mark.parametrize(("corners", "pixels", "threat", "inside"), [
    *((*case, True) for case in INSIDE), *((*case, False) for case in OUTSIDE)
])  # fmt: skip
def test_a_change_counts_inside_the_claimed_rectangles_and_nowhere_else(corners, pixels, threat, inside):
    """One changed pixel next to one, on any side, in any channel, is enough; height and width are not swapped."""
    outcome = verdict(corners, pixels, threat=threat, channels=3, size=SIZE if threat in (ONE, TWO) else (8, 8))
    assert outcome.contained.tolist() == outcome.broken.tolist() == [inside]
    assert outcome.in_range.all()
    assert int(outcome.prediction) == int(inside)


@pytest.mark.parametrize("value", [1.0001, -0.0001, float("nan"), float("inf"), -float("inf")])
def test_values_outside_the_range(value):
    """Values above 1, below 0 and NaN are no images."""
    outcome = verdict([1, 2], [(0, 1, 2)], value=value)
    assert not outcome.in_range.any()
    assert not outcome.broken.any()
    assert int(outcome.prediction) == 0


def test_nan_outside_the_rectangle_is_a_change():
    """NaN differs from what was there."""
    assert not verdict([1, 2], [(0, 5, 7)], value=float("nan")).contained.any()


def test_an_unchanged_image():
    """No change: contained, in range, not broken; unless the prediction was never y."""
    outcome = verdict([0, 0], [])
    assert outcome.contained.all()
    assert outcome.in_range.all()
    assert not outcome.broken.any()


def test_an_abstention_is_no_longer_the_prediction():
    """-1 is a success of the attack; of a model that answers by chance it says nothing."""
    for model, broken in ((Sum(), True), (ByChance(), False)):
        outcome = verdict([1, 2], [(0, 1, 2)], value=0.25, model=model.eval())
        assert outcome.contained.all()
        assert int(outcome.prediction) == -1
        assert outcome.broken.tolist() == [broken]
        assert verdict([1, 2], [(0, 1, 2)], model=model.eval()).broken.all()


def test_rows_are_judged_apart():
    """One image that leaves its rectangle does not spoil, or borrow from, its neighbours."""
    x = torch.zeros(3, 1, *SIZE)
    x_adv = x.clone()
    x_adv[0, 0, 0, 0], x_adv[1, 0, 5, 7], x_adv[2, 0, 0, 1] = 1, 1, 2
    proposal = Proposal(x_adv, torch.zeros(3, 1, 2, dtype=torch.long), torch.zeros(3, dtype=torch.long), torch.zeros(3))
    outcome = judge(Sum().eval(), x, torch.zeros(3, dtype=torch.long), THREAT, proposal)
    assert outcome.broken.tolist() == [True, False, False]
    assert outcome.contained.tolist() == [True, False, True]
    assert outcome.in_range.tolist() == [True, True, False]
    assert outcome.prediction.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("images", "corners"), [((1, 1, 6, 7), (1, 1, 2)), ((2, 1, 6, 8), (2, 1, 2)), ((1, 1, 6, 8), (1, 2, 2))]
)
def test_wrong_shapes_are_refused(images, corners):
    """A proposal for other images, or with too many rectangles."""
    proposal = Proposal(
        torch.zeros(images),
        torch.zeros(corners, dtype=torch.long),
        torch.zeros(images[0], dtype=torch.long),
        torch.zeros(images[0]),
    )
    with pytest.raises(InvalidInput, match="proposal has images"):
        judge(Sum().eval(), torch.zeros(1, 1, *SIZE), torch.zeros(1, dtype=torch.long), THREAT, proposal)


@pytest.mark.parametrize("part", ["whole", "top", "part"])
def test_a_plain_model_in_training_mode_is_refused(part):
    """As a whole, at the top alone or in one part deep inside: its answer would depend on the batch, or on chance."""
    dropout = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Identity())
    model = torch.nn.Sequential(torch.nn.Flatten(), dropout, torch.nn.Linear(48, 2)).eval()
    assert verdict([0, 0], [], model=model).contained.all()
    {"whole": model.train, "top": lambda: setattr(model, "training", True), "part": dropout[0].train}[part]()
    with pytest.raises(InvalidInput, match=r"in training mode.*model\.eval"):
        verdict([0, 0], [], model=model)


def test_a_plain_model_is_judged_by_its_argmax():
    """Without `predict`, the first largest output decides."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2, bias=False)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([torch.zeros(48), torch.ones(48)]))
    assert not verdict([0, 0], [], model=model).broken.any()
    assert verdict([0, 0], [(0, 0, 0)], model=model).broken.all()
