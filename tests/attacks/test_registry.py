"""What `--attacks` means."""

from __future__ import annotations

import pytest

from attacks import Ensemble, ExhaustivePGD, PatchAttack, PatchPGD, SparseRS, parse_attacks
from attacks.registry import KNOWN, names
from robustpatch.errors import InvalidInput


@pytest.mark.parametrize("name", KNOWN)
def test_every_name_is_an_attack(name):
    """By name alone, with a number where it takes one, and refused with one where it does not."""
    (attack,) = parse_attacks(name)
    assert isinstance(attack, PatchAttack)
    parameter = KNOWN[name][1]
    if parameter is None:
        with pytest.raises(InvalidInput, match="is none"):
            parse_attacks(f"{name}:3")
    else:
        (numbered,) = parse_attacks(f"{name}:3")
        assert numbered != attack
        assert getattr(numbered, parameter) == 3
    for text in (f"{name}:", f"{name}:x", f"{name}:-1", f"{name}:1.5", f"{name} {name}"):
        with pytest.raises(InvalidInput, match="is none; known are standard, quick"):
            parse_attacks(text)


def test_lists_budgets_and_steps():
    """Commas separate; the budget is each attack's, steps theirs who have them."""
    found = parse_attacks(" pgd:5, exhaustive,sparse-rs:7,standard", steps=3, budget=99)
    assert [attack.name for attack in found] == ["pgd-5", "exhaustive", "sparse-rs", "standard"]
    assert [attack.budget for attack in found] == [99] * 4
    pgd, exhaustive, random, _ = found
    assert isinstance(pgd, PatchPGD)
    assert isinstance(exhaustive, ExhaustivePGD)
    assert isinstance(random, SparseRS)
    assert (pgd.steps, pgd.restarts, exhaustive.steps, random.queries) == (3, 5, 3, 7)
    (ensemble,) = parse_attacks("standard", steps=3)
    assert isinstance(ensemble, Ensemble)
    assert [getattr(member, "steps", None) for member in ensemble.members] == [3, 3, None]
    assert parse_attacks("none") == []


def test_published_parameters():
    """The release's: 150 steps of .05 at 80 random placements through the mean softmax, nothing pruned."""
    (attack,) = parse_attacks("pgd-published")
    assert isinstance(attack, PatchPGD)
    assert (attack.steps, attack.restarts, attack.step, attack.last) == (150, 80, 0.05, 1.0)
    assert (attack.objective, attack.guided, attack.touched_only) == ("mean-softmax", False, False)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "is none"),
        ("pgd,", {}, "is none"),
        ("pgd,none", {}, "'none' is none"),
        ("pgd,pgd:20", {}, "names one attack twice"),
        ("pgd:0", {}, "restarts is 0"),
        ("sparse-rs", {"steps": 3}, "none of the attacks 'sparse-rs' has any"),
        ("pgd", {"budget": 0}, "budget is 0"),
        ("standard", {"budget": -1}, "budget is -1"),
    ],
)
def test_wrong_lists_are_refused(text, options, message):
    """The message names the value and what is known."""
    with pytest.raises(InvalidInput, match=message):
        parse_attacks(text, **options)


def test_ensembles_go_from_cheap_to_dear():
    """Each has members of other kinds, a budget, and members in the order of their shares but for the black box."""
    for name in ("quick", "standard"):
        (ensemble,) = parse_attacks(name)
        assert isinstance(ensemble, Ensemble)
        assert ensemble.budget is not None
        assert len({type(member) for member in ensemble.members}) == len(ensemble.members)
    assert "standard" in names()
