"""Every attack against every planted bug: which finds which, run as the evaluator runs them on certified images.

The table is printed after the tests.
"""

from __future__ import annotations

import pytest
import torch

from attacks import Control, Ensemble, Oracle, judge
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from tests.attacks.toys import registered
from tests.evaluate.planted import PLANTS, exposing, striped, wide

BUDGET = 3_000  # evaluations of each attack on an image
LESS = 300  # the same where nothing is to be found
ATTACKS = {**registered(steps=6, restarts=10, rounds=1, queries=300, tries=4), "oracle": Oracle()}
ENSEMBLES = {name for name, attack in ATTACKS.items() if isinstance(attack, Ensemble)}
CONTROLS = {name for name, attack in ATTACKS.items() if isinstance(attack, Control)}
PICKY = {"art-patch": "ART draws patches on 2x2"}  # what may refuse an image, and how
BUGS = [*PLANTS, "too wide a view"]


def case(bug):
    """The broken certifier, its sound twin, images that the former alone certifies, and some that the latter does."""
    if bug not in PLANTS:
        x = torch.zeros(1, 1, 2, 7)
        return wide(), wide(0), x, torch.cat([x, 1 - x]), PatchThreat(2, 2)
    plant = PLANTS[bug]
    sound, (height, width) = plant.sound(), plant.room
    across = bug.endswith("rows") or height > width
    edge = striped(width, height, plant.classes, across=across)
    edge = edge[sound.certify(edge, plant.threat).certified]
    return plant.broken(), sound, exposing(plant), edge[[0, -1]], plant.threat


def attacked(name, model, x, threat, attack=None, budget=BUDGET):
    """The certified images that the attack breaks; None where it cannot search them."""
    assert model.certify(x, threat).certified.all()
    attack, y = (ATTACKS[name] if attack is None else attack).unpruned(budget), model.predict(x)
    assert not attack.touched_only
    try:
        proposal = attack(model, x, y, threat, generator=torch.Generator().manual_seed(0))
    except InvalidInput as refusal:
        if name not in PICKY or PICKY[name] not in str(refusal):
            raise
        return None
    outcome = judge(model, x, y, threat, proposal)
    assert outcome.in_range.all()
    # ART draws a pixel too large where image and patch are not both of even, or both of odd size: not a success then.
    assert outcome.contained.all() or name == "art-patch"
    return outcome.broken


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.usefixtures("unchecked_base")
def test_a_bug_is_caught_by_attacks_of_two_kinds(bug, record_property):
    """Ensembles, controls and the oracle not counted; the oracle proves it real, and "standard" misses on no image
    what any member finds on its own."""
    model, _, x, _, threat = case(bug)
    broken = {name: attacked(name, model, x, threat) for name in ATTACKS}
    marks = {name: "-" if rows is None else "x" if rows.any() else "·" for name, rows in broken.items()}
    record_property("planted", [BUGS.index(bug) + 1, bug, marks])
    single = [name for name in ATTACKS.keys() - ENSEMBLES - CONTROLS - {"oracle"} if marks[name] == "x"]
    assert len({type(ATTACKS[name]) for name in single}) >= 2, single
    assert broken["oracle"].all()
    alone = [attacked(member.name, model, x, threat, member) for member in ATTACKS["standard"].members]
    assert not (torch.stack(alone).any(dim=0) & ~broken["standard"]).any()


@pytest.mark.parametrize("bug", BUGS)
def test_the_sound_twin_stands(bug):
    """No attack breaks what is rightly certified; nor does the oracle where it is soon done."""
    _, model, _, x, threat = case(bug)
    for name in [name for name in ATTACKS if name != "oracle" or threat.height * threat.width <= 4]:
        broken = attacked(name, model, x, threat, budget=LESS)
        assert broken is None or not broken.any(), name
