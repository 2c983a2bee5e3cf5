"""An ensemble is the worst case of its members, and no member does more alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from attacks import ExhaustivePGD, FromART, Oracle, PatchAttack, PatchPGD, Proposal, Undefended, judge
from attacks.ensemble import Ensemble
from robustpatch.ablations.kinds import Columns
from robustpatch.defenses import parse_defense
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Threshold
from tests.attacks.toys import Level, Lookup, Plain, images, labels, smoothed, strip

SIZE, THREAT = (5, 6), PatchThreat(2, 3)
MEMBERS = (PatchPGD(steps=2, restarts=2), ExhaustivePGD(steps=2, rounds=1), Oracle(levels=(0.0, 1.0)))
MODELS = {
    "lookup": lambda: smoothed(Lookup(1, 2 * 30, 3, favour=2.0), Columns(1), 3, Threshold(0.3)),
    "one pass": lambda: strip(SIZE),
    "plain": lambda: Plain(30).eval(),
}


def run(attack, model, x, y, threat=THREAT, seed=3):
    proposal = attack(model, x, y, threat, generator=torch.Generator().manual_seed(seed))
    return proposal, judge(model, x, y, threat, proposal).broken


@pytest.mark.parametrize("kind", MODELS)
def test_it_breaks_just_what_a_member_breaks(kind):
    """Per image, the ensemble succeeds iff some member does alone, and names the first that does."""
    model, x = MODELS[kind](), images(24, SIZE, binary=True)
    y = labels(model, x)
    members = MEMBERS[:2]
    proposal, broken = run(Ensemble(members, "both"), model, x, y)
    alone = torch.stack([run(member, model, x, y)[1] for member in members])
    assert torch.equal(broken, alone.any(dim=0))
    assert proposal.by is not None
    names = [members[int(alone[:, i].float().argmax())].name if broken[i] else "" for i in range(len(x))]
    assert all(by == name for by, name in zip(proposal.by, names, strict=True) if name)
    assert set(proposal.by) <= {member.name for member in members}


def test_members_work_on_what_still_stands():
    """Later members cost the images that earlier ones broke nothing; the evaluations of the rest add up."""
    model = MODELS["lookup"]()
    x = images(24, SIZE, binary=True)
    y = labels(model, x)
    first, second = (replace(member, batch=4096) for member in MEMBERS[:2])  # room for all climbs of all images at once
    one, broken = run(first, model, x, y)
    assert broken.any()
    assert not broken.all()
    two, _ = run(second, model, x, y)
    both, _ = run(Ensemble((first, second), "both"), model, x, y)
    assert torch.equal(both.evaluations, one.evaluations + torch.where(broken, 0, two.evaluations))
    assert torch.equal(both.visited, torch.where(broken, one.visited, torch.maximum(one.visited, two.visited)))


def test_the_nearest_miss_is_kept():
    """Of an image that stands, the proposal that left the least objective, not the last one."""
    model, x = smoothed(Level(2), Columns(1), 2, Threshold(0.3)), images(3, SIZE) * 0.2
    y, far, near = (
        labels(model, x),
        PatchPGD(steps=1, restarts=1, guided=False),
        PatchPGD(steps=9, restarts=9, guided=False),
    )
    for members in ((far, near), (near, far)):
        proposal, broken = run(Ensemble(members, "two"), model, x, y, PatchThreat(1, 1))
        best, _ = run(near, model, x, y, PatchThreat(1, 1))
        assert not broken.any()
        assert proposal.by == [near.name] * 3
        assert torch.equal(proposal.x_adv, best.x_adv)


@dataclass(frozen=True)
class Astray:
    """Changes the whole image: never within the threat."""

    name: str = "astray"
    touched_only: bool = False

    def unpruned(self, budget):
        return self

    def check(self, threat):
        pass

    def __call__(self, model, x, y, threat, *, generator):
        corners = torch.zeros(len(x), threat.count, 2, dtype=torch.long)
        return Proposal(1 - x, corners, torch.full_like(y, 7), torch.ones(len(x)))


def test_what_leaves_the_threat_is_not_hidden():
    """It stands for an image to which no member has anything within the threat, and for no other."""
    model, x = MODELS["one pass"](), images(4, SIZE)
    y = labels(model, x)
    within = PatchPGD(steps=1, restarts=1)
    for members, contained in (((Astray(),), False), ((Astray(), within), True), ((within, Astray()), True)):
        proposal, _ = run(Ensemble(members, "some"), model, x, y)
        assert (judge(model, x, y, THREAT, proposal).contained == contained).all()
        assert proposal.by == [within.name if contained else "astray"] * len(x)


def test_a_budget_is_shared():
    """Members get their shares, and together spend no more than it but for the step under way."""
    model, x = smoothed(Lookup(0, 2 * 30, 3, favour=9.0), Columns(2), 3), images(4, SIZE)
    y = labels(model, x)
    members = (PatchPGD(steps=2, restarts=500, guided=False), replace(MEMBERS[1], rounds=9, keep=1.0).unpruned(None))
    climbs = (4 * 5, 6 * 5 * 2**9)
    ensemble = Ensemble(members, "both", budget=800, shares=(3.0, 1.0))
    spent = run(ensemble, model, x, y)[0].evaluations
    assert (spent < 800 + sum(climbs)).all()
    alone = run(replace(members[0], budget=600), model, x, y)[0].evaluations
    assert (spent - alone == run(replace(members[1], budget=200), model, x, y)[0].evaluations).all()


def test_members_that_cannot_search_a_threat_are_left_out():
    """Two patches are beyond one of ART's: the others run; where none can, its own refusal is raised."""
    model, x, threat = MODELS["one pass"](), images(2, SIZE), PatchThreat(1, 2, 2)
    y = labels(model, x)
    ensemble = Ensemble((MEMBERS[0], FromART.patch()), "both")
    ensemble.check(threat)
    proposal, _ = run(ensemble, model, x, y, threat)
    assert proposal.by == ["pgd-2"] * 2
    with pytest.raises(InvalidInput, match="use a masked attack"):
        Ensemble((FromART.patch(),), "one").check(threat)


def test_unpruned_is_every_member_unpruned():
    """What tests a certificate leans on it in no part."""
    ensemble = Ensemble(MEMBERS, "all")
    assert isinstance(ensemble, PatchAttack)
    assert ensemble.touched_only
    unpruned = ensemble.unpruned(100)
    assert not unpruned.touched_only
    assert all(not member.touched_only for member in unpruned.members)
    assert unpruned.budget == 100


def test_the_generator_goes_on():
    """The same seed gives the same proposal; the generator is left elsewhere than it was."""
    model, x = MODELS["one pass"](), images(3, SIZE)
    y = labels(model, x)
    ensemble = Ensemble(MEMBERS[:2], "both")
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    first = ensemble(model, x, y, THREAT, generator=generator)
    assert not torch.equal(generator.get_state(), state)
    generator.manual_seed(0)
    again = ensemble(model, x, y, THREAT, generator=generator)
    assert torch.equal(first.x_adv, again.x_adv)
    assert torch.equal(first.evaluations, again.evaluations)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ensemble((), "none"), "members is empty"),
        (lambda: Ensemble(MEMBERS, "all", budget=0), "budget is 0"),
        (lambda: Ensemble(MEMBERS, "all", shares=(1.0,)), "shares is"),
        (lambda: Ensemble(MEMBERS, "all", shares=(1.0, 0.0, 1.0)), "shares is"),
    ],
)
def test_impossible_ensembles_are_refused(make, message):
    """The message names what is wrong."""
    with pytest.raises(InvalidInput, match=message):
        make()


@pytest.mark.parametrize("attack", [*MEMBERS[:1], Ensemble(MEMBERS[:1], "alone"), Undefended(MEMBERS[0])])
def test_without_a_generator_chance_is_that_of_seed_0(attack):
    model, x = Plain(30).eval(), images(8, SIZE)
    if isinstance(attack, Undefended):
        model = parse_defense("lgs").wrap(model, num_classes=3).eval()
    y = model(x).argmax(dim=1)
    alone, seeded = attack(model, x, y, THREAT), run(attack, model, x, y, seed=0)[0]
    assert torch.equal(alone.x_adv, seeded.x_adv)
    assert not torch.equal(alone.x_adv, run(attack, model, x, y, seed=1)[0].x_adv)
