"""LaVAN stays where it is put, and goes on until the class asked for is predicted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks import PatchAttack, judge
from attacks.lavan import LaVAN
from robustpatch.ablations.kinds import Columns
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
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


def run(attack, model, x, threat=THREAT, y=None, seed=0):
    y = (model.predict(x) if hasattr(model, "predict") else model(x).argmax(dim=1)) if y is None else y
    return attack(model, x, y, threat, generator=torch.Generator().manual_seed(seed))


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
    outcome = judge(model, x, y, THREAT, run(attack, model, x))
    assert outcome.broken.all()
    assert (outcome.prediction == target).all()
    anything = run(LaVAN(steps=60, step=0.05, touched_only=touched_only), model, x)
    assert (judge(model, x, y, THREAT, anything).prediction == 1).all()


@pytest.mark.parametrize("kind", ["enumerated", "plain"])
@pytest.mark.usefixtures("black_start")
def test_another_wrong_answer_is_not_lost(kind):
    """A target out of reach costs all steps, and what was broken on the way is proposed."""
    (x, y), base = dark(), Unreachable(Level(3)).eval()
    model = smoothed(base, Columns(2), 4) if kind == "enumerated" else base
    attack = LaVAN(steps=40, step=0.05, target=3)
    proposal = run(attack, model, x)
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
    targeted = run(LaVAN(steps=20, target=int(y[0])), model, x, y=y)
    free = run(LaVAN(steps=20), model, x, y=y)
    assert torch.equal(targeted.x_adv, free.x_adv)
    assert torch.equal(targeted.evaluations, free.evaluations)


@pytest.mark.parametrize("corner", [(0, 0), (3, 1), (1, 1), (0, 1)])
def test_the_corner_is_kept(corner):
    """Nothing changes elsewhere, and that one placement is all that was visited."""
    model, x = Plain(30).eval(), images(3, SIZE)
    proposal = run(LaVAN(steps=3, corner=corner), model, x)
    assert (proposal.corners == torch.tensor(corner)).all()
    assert judge(model, x, model(x).argmax(dim=1), THREAT, proposal).contained.all()
    assert (proposal.visited == 1 / 8).all()


def test_without_a_corner_it_is_random():
    """Every placement has its turn over seeds, and images differ."""
    model, x = smoothed(Level(2), Columns(1), 2), torch.zeros(1, 1, 3, 4)
    seen = set()
    for seed in range(25):
        seen.add(tuple(run(LaVAN(steps=1), model, x, PatchThreat(2, 3), seed=seed).corners[0, 0].tolist()))
    assert seen == {(row, column) for row in range(2) for column in range(2)}
    corners = run(LaVAN(steps=1), Plain(30).eval(), images(8, SIZE), PatchThreat(1, 1)).corners
    assert len(corners.unique(dim=0)) > 1


def test_success_ends_it():
    """Broken images cost no further step; the others take all of them."""
    model, x = smoothed(Level(2), Columns(1), 2), torch.zeros(2, 1, *SIZE)
    wide, narrow = PatchThreat(1, 6), PatchThreat(1, 2)
    assert (run(LaVAN(steps=100), model, x, wide).evaluations < 6 * 30).all()
    assert (run(LaVAN(steps=100), model, x, narrow).evaluations == 6 + 201 * 2).all()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("target", [None, 1])
@pytest.mark.parametrize("batch", [2, 512])
def test_the_generator_decides_and_inputs_are_kept(kind, target, batch):
    """The same proposal for the same seed, another for another; any rectangles, any channels; nothing written to."""
    model, x = MODELS[kind](), images(5, SIZE, channels=2 if kind == "plain" else 1)
    y, attack = torch.tensor([0, 1, 2, 3, 0]), LaVAN(steps=4, target=target, batch=batch)
    before = (x.clone(), y.clone())
    for threat in (PatchThreat(1, 1), PatchThreat(5, 6), PatchThreat(2, 5, 2)):
        first = run(attack, model, x, threat, y, seed=1)
        torch.rand(5)
        again = run(attack, model, x, threat, y, seed=1)
        for name in ("x_adv", "corners", "evaluations", "visited"):
            assert torch.equal(getattr(first, name), getattr(again, name)), name
        outcome = judge(model, x, y, threat, first)
        assert outcome.contained.all()
        assert outcome.in_range.all()
    assert not torch.equal(first.x_adv, run(attack, model, x, threat, y, seed=2).x_adv)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("target", [None, 1])
@pytest.mark.parametrize("touched_only", [True, False])
def test_evaluations_are_counted(target, touched_only):
    """One for each row that the base sees, and one for each that it is differentiated at."""
    model, x = smoothed(Level(3), Columns(2), 3, chunk=1000), images(5, SIZE) * 0.4
    y, rows = model.predict(x), []

    def seen(_, inputs):
        rows.append(len(inputs[0]) * (2 if inputs[0].requires_grad else 1))

    model.base.register_forward_pre_hook(seen)
    proposal = run(LaVAN(steps=9, target=target, touched_only=touched_only), model, x, y=y)
    assert int(proposal.evaluations.sum()) == sum(rows)


@pytest.mark.parametrize("budget", [1, 6, 7, 50, 500])
@pytest.mark.parametrize("touched_only", [True, False])
def test_the_budget_is_kept(budget, touched_only):
    """No step is begun beyond it."""
    model, (x, _), n = smoothed(Level(2), Columns(1), 2), dark(), 1 if touched_only else 6
    spent = run(LaVAN(steps=60, budget=budget, touched_only=touched_only), model, x, PatchThreat(2, 1)).evaluations
    assert (spent >= min(budget, 6 + 121 * n)).all()
    assert (spent < max(budget, 6) + 2 * n).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"step": 0.0}, "step is 0.0"),
        ({"last": 2.0}, "last is 2.0"),
        ({"target": -1}, "target is -1"),
        ({"batch": 0}, "batch is 0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    """By name and value."""
    with pytest.raises(InvalidInput, match=message):
        LaVAN(**settings)


@pytest.mark.parametrize("corner", [(4, 0), (0, 2), (-1, 0), (0, -1)])
def test_a_corner_that_does_not_fit_is_refused(corner):
    """With those that do."""
    with pytest.raises(InvalidInput, match="rows 0 to 3 and columns 0 to 1"):
        run(LaVAN(corner=corner), Plain(30).eval(), images(1, SIZE))


def test_a_corner_places_one_patch():
    """Several at one corner would be one."""
    with pytest.raises(InvalidInput, match="leave corner None"):
        LaVAN(corner=(0, 0)).check(PatchThreat(1, 1, 2))


@pytest.mark.parametrize("kind", MODELS)
def test_a_target_that_is_no_class_is_refused(kind):
    """Before any work, on a GPU too."""
    with pytest.raises(InvalidInput, match="target is 4; it must be below 4"):
        run(LaVAN(target=4), MODELS[kind](), images(1, SIZE))


def test_it_is_an_attack():
    """A target is part of the name, so that two of them can stand in one table."""
    assert isinstance(LaVAN(), PatchAttack)
    assert [LaVAN().name, LaVAN(target=3).name] == ["lavan", "lavan-3"]
    assert LaVAN(target=3).unpruned(9) == LaVAN(target=3, budget=9, touched_only=False)
