"""LaVAN stays where it is put, and goes on until the class asked for is predicted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks import judge
from attacks.lavan import LaVAN
from robustpatch.ablations.kinds import Columns
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from tests.attacks import toys
from tests.attacks.toys import Level, Plain, images, smoothed, strip

SIZE = (5, 6)
THREAT = PatchThreat(2, 5)
MODELS = {
    "enumerated": lambda: smoothed(Level(4), Columns(2), 4),
    "one pass": lambda: strip(SIZE, classes=4),
    "plain": lambda: Level(4).eval(),
}


class Unreachable(nn.Module):
    """A class more, which nothing is ever taken for."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x):
        scores = self.base(x)
        return torch.cat([scores, scores[:, :1] * 0 - 50], dim=1)


def dark(batch=3):
    """Of class 0, the patch's start too: its level is reached from below, through every class."""
    return torch.zeros(batch, 1, *SIZE), torch.zeros(batch, dtype=torch.long)


@pytest.fixture
def black_start(monkeypatch):
    monkeypatch.setattr(
        "attacks.search.Search.noise", lambda self, image: self.x.new_full((len(image), 1, 1, 2, 5), 0.01)
    )


@pytest.mark.parametrize("touched_only", [True, False])
@pytest.mark.parametrize("target", [1, 2, 3])
@pytest.mark.parametrize("kind", ["enumerated", "plain"])
@pytest.mark.usefixtures("black_start")
def test_the_target_is_reached(kind, target, touched_only):
    """Through other wrong answers, at which an attack without a target stops."""
    model, (x, y) = MODELS[kind](), dark()
    attack = LaVAN(steps=60, step=0.05, target=target, touched_only=touched_only)
    outcome = judge(model, x, y, THREAT, toys.run(attack, model, x, THREAT))
    assert outcome.broken.all()
    assert (outcome.prediction == target).all()
    anything = toys.run(LaVAN(steps=60, step=0.05, touched_only=touched_only), model, x, THREAT)
    assert (judge(model, x, y, THREAT, anything).prediction == 1).all()


@pytest.mark.parametrize("kind", ["enumerated", "plain"])
@pytest.mark.usefixtures("black_start")
def test_another_wrong_answer_is_not_lost(kind):
    """A target out of reach costs all steps, and what was broken on the way is proposed."""
    (x, y), base = dark(), Unreachable(Level(3)).eval()
    model = smoothed(base, Columns(2), 4) if kind == "enumerated" else base
    attack = LaVAN(steps=40, step=0.05, target=3)
    proposal = toys.run(attack, model, x, THREAT)
    outcome = judge(model, x, y, THREAT, proposal)
    assert outcome.broken.all()
    assert (outcome.prediction != 3).all()
    n = 6 if kind == "enumerated" else 1
    assert (proposal.evaluations == n + 81 * n + n).all()


@pytest.mark.parametrize("kind", MODELS)
def test_an_image_of_the_target_class_is_moved_anywhere_else(kind):
    """As without a target."""
    model, x = MODELS[kind](), images(4, SIZE) * 0.3
    y = model(x).argmax(dim=1)
    y[:] = y[0]
    targeted = toys.run(LaVAN(steps=20, target=int(y[0])), model, x, THREAT, y)
    free = toys.run(LaVAN(steps=20), model, x, THREAT, y)
    assert torch.equal(targeted.x_adv, free.x_adv)
    assert torch.equal(targeted.evaluations, free.evaluations)


@pytest.mark.parametrize("corner", [(0, 0), (3, 1), (1, 1), (0, 1)])
def test_the_corner_is_kept(corner):
    """Nothing changes elsewhere, and that one placement is all that was visited."""
    model, x = Plain(30).eval(), images(3, SIZE)
    proposal = toys.run(LaVAN(steps=3, corner=corner), model, x, THREAT)
    assert (proposal.corners == torch.tensor(corner)).all()
    assert judge(model, x, model(x).argmax(dim=1), THREAT, proposal).contained.all()
    assert (proposal.visited == 1 / 8).all()


def test_without_a_corner_it_is_random():
    """Every placement has its turn over seeds, and images differ."""
    model, x = smoothed(Level(2), Columns(1), 2), torch.zeros(1, 1, 3, 4)
    seen = set()
    for seed in range(25):
        seen.add(tuple(toys.run(LaVAN(steps=1), model, x, PatchThreat(2, 3), seed=seed).corners[0, 0].tolist()))
    assert seen == {(row, column) for row in range(2) for column in range(2)}
    corners = toys.run(LaVAN(steps=1), Plain(30).eval(), images(8, SIZE), PatchThreat(1, 1)).corners
    assert len(corners.unique(dim=0)) > 1


@pytest.mark.parametrize("corner", [(4, 0), (0, 2), (-1, 0), (0, -1)])
def test_a_corner_that_does_not_fit_is_refused(corner):
    """With those that do."""
    with pytest.raises(InvalidInput, match="rows 0 to 3 and columns 0 to 1"):
        toys.run(LaVAN(corner=corner), Plain(30).eval(), images(1, SIZE), THREAT)


def test_a_corner_places_one_patch():
    """Several at one corner would be one."""
    with pytest.raises(InvalidInput, match="leave corner None"):
        LaVAN(corner=(0, 0)).check(PatchThreat(1, 1, 2))
