"""Dictated votes: each planted bug is found and named, a sound certifier never is, and the base is a function."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from evaluate.audit import audit, replay
from evaluate.audit.dictated_base import Answers, DictatedBase, keys_of, vote
from evaluate.audit.factory import try_factory
from evaluate.audit.harness import Harness
from evaluate.audit.plans import Plan
from evaluate.audit.vote_patterns import ballots
from robustpatch.ablations.kinds import Blocks, Columns, Rows
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.encoding import MaskChannel
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Threshold, TopOne
from robustpatch.voting.scored import ClippedTanh, SigmoidThreshold
from tests import oracles
from tests.evaluate.audit_bugs import THROUGH_A_FACTORY, make
from tests.evaluate.audits import dictated
from tests.evaluate.planted import PLANTS

SLOW = pytest.mark.slow
TWINS = ("width and height swapped", "delta one less, rows")  # of others with rows for columns
PLAIN = ((1, 3, 13), PatchThreat(2, 2))
WHERE = {  # the images and the patch on which a bug shows
    "3 stride": ((1, 3, 16), PatchThreat(1, 1)),
    "7 patch sides swapped": ((1, 3, 13), PatchThreat(1, 3)),
    "9 more than all": ((1, 3, 5), PatchThreat(1, 4)),
    "10 one channel ablated": ((3, 3, 13), PatchThreat(2, 2)),
    "16 eight bits": ((1, 2, 300), PatchThreat(2, 2)),
    "several patches as one": ((1, 3, 13), PatchThreat(1, 1, 2)),
}


def chance():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("bug", "named"), THROUGH_A_FACTORY.items())
def test_each_bug_is_found_and_named(bug, named):
    shape, threat = WHERE.get(bug, PLAIN)
    names = {finding.check for finding in dictated(Harness(make(bug), 4, shape), threat)[0]}
    assert named in names if named else not names


@pytest.mark.parametrize("bug", [pytest.param(bug, marks=SLOW) if bug == "16 eight bits" else bug for bug in WHERE])
def test_the_sound_certifier_holds_there(bug):
    shape, threat = WHERE[bug]
    findings, tally = dictated(Harness(make("", 3 if bug == "3 stride" else 1), 4, shape), threat)
    assert not findings
    assert tally.ballots >= 24
    assert bug == "9 more than all" or tally.certified > 0


def test_swapped_sides_are_named(only_plans):
    """Square patches hold, one that is low and wide does not; of an even number of views as well, of which two
    classes alone cannot make every lead.
    """
    plan = Plan((1, 5, 14), (PatchThreat(2, 2), PatchThreat(1, 4)))
    only_plans(plan)
    tested = try_factory(make("7 patch sides swapped"), 4, (1, 6, 13), PatchThreat(2, 2), 200, 0, lambda _: None)
    assert [(finding.check, finding.where) for finding in tested.findings] == [("sides", ("1x4", "1x5x14"))]
    assert "against 4x1, which can turn 2, it asks for a lead of 11" in tested.findings[0].sentence
    assert not try_factory(make(""), 4, (1, 6, 13), PatchThreat(2, 2), 200, 0, lambda _: None).findings


@pytest.mark.parametrize(
    ("ablation", "voting", "encoding"),
    [
        (Rows(2), Threshold(0.2), None),
        (Columns(3, 3), TopOne(), MaskChannel()),
        pytest.param(Columns(2), Threshold(0.3), None, marks=SLOW),
        pytest.param(Blocks(2), TopOne(), None, marks=SLOW),
        pytest.param(Columns(2), SigmoidThreshold(0.22), None, marks=SLOW),
        pytest.param(Rows(2), ClippedTanh(2.0, 1.0), None, marks=SLOW),
    ],
)
@pytest.mark.parametrize("size", [(4, 10), pytest.param((10, 4), marks=SLOW)])
def test_ours_hold(ablation, voting, encoding, size):
    """Of every ablation, vote and encoding; and the views touched, told by the views alone, are those of the loops."""
    options = {} if encoding is None else {"encoding": encoding}

    def factory(base, classes, shape):
        return SmoothedClassifier(base, ablation, num_classes=classes, voting=voting, **options).eval()

    harness = Harness(factory, 4, (1, *size))
    findings, tally = dictated(harness, PatchThreat(1, 2), 500)
    assert not findings
    sizes = {len(touched) for touched in oracles.touched(f"{ablation}", (1, 2), size)}
    assert tally.touched == (min(sizes), max(sizes))
    assert tally.certified > 0 or harness.total <= 2 * max(sizes)


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW) if name in TWINS else name for name in PLANTS])
def test_plants_are_found_through_a_factory(name):
    plant = PLANTS[name]
    kind, (tall, wide) = type(plant.broken()), plant.room

    def factory(base, classes, shape):
        return kind(base, plant.ablation, num_classes=classes, voting=TopOne(1e-6)).eval()

    harness = Harness(factory, 4, (1, tall + 2 * (tall > wide), wide + 3 * (wide >= tall)))
    assert dictated(harness, plant.threat)[1].findings


def test_a_ballot_is_just_overturned():
    """Of every kind: the winner wins, and loses to the rival when all touched views turn, by as little as can be."""
    views = Counter({bytes([n]): 1 for n in range(40)})
    touched = {bytes([n]) for n in range(3, 8)}
    kinds, leads = set(), set()
    for ballot in ballots(views, touched, 4, chance()):
        kinds.add(ballot.kind)
        assert oracles.winner(ballot.before) == ballot.winner
        if ballot.kind != "unanimous":
            assert ballot.after[ballot.rival] == max(ballot.after)
            assert 0 <= ballot.after[ballot.rival] - ballot.after[ballot.winner] <= 4
            leads.add((ballot.rival < ballot.winner, ballot.tie))
    assert len(kinds) == 7
    assert leads == {(True, True), (True, False), (False, True), (False, False)}  # ties for either, and clear leads
    published = (10, 20, 10, 0)
    assert published in {b.before for b in ballots(views, touched, 4, chance()) if b.kind == "tied rivals"}


def test_the_base_is_a_function_of_the_view():
    """Equal rows, equal answers; 0 and -0 are equal; arrays and tensors alike."""
    base = DictatedBase(3)
    views = torch.tensor([[0.0, 1.0], [2.0, 1.0], [-0.0, 1.0]])
    keys = keys_of(views)
    assert keys[0] == keys[2] != keys[1]
    assert keys == keys_of(views.numpy()) == keys_of(views.double())
    base.dictate(Answers({keys[0]: vote(3, (1,))}, vote(3, (2,))))
    assert base(views).argmax(dim=1).tolist() == base(views.numpy()).argmax(axis=1).tolist() == [1, 2, 1]
    with base.recording() as shown:
        base(views)
    assert shown == Counter(keys)


def test_other_answers_make_no_other_base():
    """A certifier that tests its base whenever that has changed tests it once for all answers; a copy says the same."""
    base, x, threat = DictatedBase(4), torch.rand((1, 1, 2, 8), generator=chance()), PatchThreat(1, 1)
    model = SmoothedClassifier(base, Columns(2), num_classes=4).eval()
    shown = []
    for k in (1, 2, 3):
        base.dictate(Answers({}, vote(4, (k,))))
        with base.recording() as views:
            assert int(model.certify(x, threat).prediction[0]) == k
        shown.append(views.total())
    assert shown[0] > 4 * shown[1] == 4 * shown[2]
    assert deepcopy(base)(x).argmax(dim=1).tolist() == [3]


@pytest.mark.usefixtures("few_plans")
def test_a_reproducer_shows_it_again(tmp_path):
    """Its file, with the factory alone; not with a certifier that is mended."""
    wrong, options = make("1 off by one"), {"threat": PatchThreat(2, 2), "image_shape": (1, 4, 11), "budget": 4}
    done = audit(factory=wrong, output=tmp_path, **options)
    assert (done.verdict, [finding.check for finding in done.findings]) == ("broken", ["counts"])
    path = done.findings[0].path
    assert replay(path, factory=wrong)
    assert not replay(path, factory=make(""))
    with pytest.raises(InvalidInput, match="give that factory"):
        replay(path)


class Constant(nn.Module):
    def forward(self, x):
        return torch.zeros(len(x), 4)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda base, *_: make("")(Constant(), 4, ()), "without asking its base"),
        (lambda *_: SimpleNamespace(predict=lambda x: [0] * len(x)), "without certify"),
        (lambda *_: 1 / 0, "no certifier of 4 classes"),
    ],
)
def test_bad_factories_are_refused(factory, message):
    with pytest.raises(InvalidInput, match=message):
        audit(factory=factory, threat=PatchThreat(2, 2), image_shape=(1, 4, 9))
