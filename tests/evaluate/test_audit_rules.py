"""Rules of every kind: each planted bug is found, named and shown again, and sound certifiers raise no alarm."""

from __future__ import annotations

import pytest

from evaluate.audit import audit, replay
from evaluate.audit.plans import Plan
from robustpatch.threats.rectangle import PatchThreat
from tests.evaluate.audit_rules import PLANTED, SOUND, make

PATCH, SHAPE = PatchThreat(2, 2), (1, 4, 13)
SETTINGS = {"threat": PATCH, "image_shape": SHAPE, "budget": 60}
QUICK = {  # one of each kind; the others are slow tests
    ("ties", "higher"),
    ("alert", "above"),
    ("median", "for the winner"),
    ("summed", "float32 sum"),
    ("batches", "last incomplete batch"),
    ("sizes", "odd alone"),
    ("sampled", "half"),
    ("ties", ""),
    ("batches", ""),
}


def quick(cases):
    """Pytest's parameters, all but the quick ones marked slow."""
    return [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in cases]


@pytest.fixture(autouse=True)
def one_shape(only_plans, rule):
    """Of all shapes and patches of an audit those on which the rules of one kind differ."""
    deep = Plan(SHAPE, (PATCH,), deep=rule in ("alert", "median", "summed"), batches=rule == "batches")
    sizes = Plan(SHAPE, (PATCH, PatchThreat(2, 3), PatchThreat(3, 2), PatchThreat(3, 3)))
    only_plans(sizes if rule == "sizes" else deep)


@pytest.mark.parametrize(("rule", "bug"), quick(PLANTED))
def test_each_bug_is_found_and_shown_again(rule, bug, tmp_path):
    done = audit(factory=make(rule, bug), alerts=rule == "alert", output=tmp_path, **SETTINGS)
    assert done.failed
    found = [finding for finding in done.findings if finding.check in PLANTED[rule, bug]]
    assert found, [(finding.check, finding.sentence) for finding in done.findings]
    assert rule in ("batches", "sampled") or done.verdict == "broken"
    assert replay(found[0].path, factory=make(rule, bug))
    assert not replay(found[0].path, factory=make("ties"))


@pytest.mark.parametrize(("rule", "bug"), quick(SOUND))
def test_sound_ones_raise_no_alarm(rule, bug):
    done = audit(factory=make(rule, bug), alerts=rule == "alert", **SETTINGS)
    assert not done.findings, [(finding.check, finding.sentence) for finding in done.findings]
    # One that draws lots certifies nothing; of scores up to 2^24 few lead by twice what a patch can move.
    least = {"declared": 0, "float64 sum": 4}.get(bug, 30)
    assert done.certified >= least
