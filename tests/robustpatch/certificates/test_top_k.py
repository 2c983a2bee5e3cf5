"""Certified top-k against every rewriting of the touched votes, listed one by one; and what one ablation can add."""

from __future__ import annotations

from math import nextafter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustpatch.ablations.kinds import Blocks, Columns
from robustpatch.ablations.parse import parse_ablation
from robustpatch.certificates import margins as module
from robustpatch.certificates.exact import certify_votes
from robustpatch.certificates.lead import ranks
from robustpatch.certificates.top_k import certify_top_k
from robustpatch.errors import InvalidInput
from robustpatch.threats.parse import parse_threat
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Threshold, TopOne
from robustpatch.voting.scored import ClippedTanh, SigmoidThreshold, SummedScores
from robustpatch.voting.votes import UNITS, Scored, Votes
from tests import oracles, toys

GEOMETRIES = [  # ablation, patch, image: 3 to 6 ablations, 1 to 3 of them touched
    ("columns:1", (1, 1), (2, 4)),
    ("columns:1", (2, 2), (2, 4)),
    ("columns:1", (1, 3), (1, 5)),
    ("columns:2", (1, 1), (1, 5)),  # two touched, the last band and the first among them
    ("rows:1", (3, 1), (4, 2)),
    ("blocks:1", (1, 2), (2, 3)),
    ("columns:2/3", (1, 1), (1, 9)),  # one touched, or none
    ("columns:1+rows:1", (1, 1), (2, 3)),
]
ABLATIONS = {(text, size): parse_ablation(text).count(*size) for text, _, size in GEOMETRIES}


@st.composite
def elections(draw, geometries=GEOMETRIES, classes=(3, 4), top_one=False, close=False):
    """A geometry, votes [1,N,K] with at most `capacity` from each ablation and many ties, a class and a k."""
    text, patch, size = draw(st.sampled_from(geometries))
    classes, n = draw(st.integers(*classes)), ABLATIONS[text, size]
    capacity = 1 if top_one else draw(st.integers(1, classes))
    favoured = draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=3))
    kinds = st.lists(st.sampled_from([*favoured, *range(classes)]), min_size=top_one, max_size=capacity)
    named = draw(st.lists(kinds, min_size=n, max_size=n))
    cast = torch.zeros(1, n, classes, dtype=torch.bool)
    for i, some in enumerate(named):
        cast[0, i, some] = True
    odds = 0.15 if close else 0.0
    near = torch.rand(cast.shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) < odds
    y = draw(st.sampled_from([*favoured, *range(classes)]))
    return text, patch, size, Votes(cast, near), capacity, y, draw(st.integers(1, classes - 1))


def certify(election, count=1, k=None):
    text, patch, size, votes, capacity, y, own = election
    threat = PatchThreat(*patch, count=count)
    return certify_top_k(votes, torch.tensor([y]), k or own, parse_ablation(text), threat, size, capacity=capacity)


def truth(votes, sets, choices, y, k, close=None) -> int:
    """The least lead over the k-th strongest rival over all rewritings of each set."""
    reached = set().union(*(oracles.recasts(votes, touched, choices, close) for touched in set(sets)))
    least = min(oracles.lead_over(counts, y, k) for counts in reached)
    assert (least >= 0) == all(oracles.place(counts, y) < k for counts in reached)
    return least


@given(elections())
@settings(max_examples=120)
def test_the_certificate_is_the_truth(election):
    """certified ⇔ no rewriting of a touched set drives y out; the margin is the least lead over all of them."""
    text, patch, size, votes, capacity, y, k = election
    found, cast = certify(election), votes.cast[0].long().tolist()
    choices = oracles.ballots(len(cast[0]), capacity)
    assert int(found.margin) == truth(cast, oracles.touched(text, patch, size), choices, y, k)
    assert bool(found.certified) == (int(found.margin) >= 0)
    assert bool(found.clean) == (oracles.place([sum(row[j] for row in cast) for j in range(len(cast[0]))], y) < k)
    assert bool(found.clean) or not bool(found.certified)


@given(elections(top_one=True))
@settings(max_examples=80)
def test_top_one_votes_that_must_be_cast(election):
    """Each touched ablation votes for one class, neither more nor less: the certificate is the truth of that too."""
    text, patch, size, votes, _, y, k = election
    choices = oracles.ballots(votes.cast.shape[2], 1, all_of_it=True)
    least = truth(votes.cast[0].long().tolist(), oracles.touched(text, patch, size), choices, y, k)
    assert int(certify(election).margin) == least


@given(elections(close=True, classes=(3, 3)))
@settings(max_examples=60)
def test_close_votes_count_against_y(election):
    """The least lead over all rewritings and every turning-over of close votes besides."""
    text, patch, size, votes, capacity, y, k = election
    cast, close = votes.cast[0].long().tolist(), votes.close[0].tolist()
    choices = oracles.ballots(len(cast[0]), capacity)
    found = certify(election)
    assert int(found.margin) == truth(cast, oracles.touched(text, patch, size), choices, y, k, close)
    assert bool(found.clean) or not bool(found.certified)


@given(elections(geometries=GEOMETRIES[:1] + GEOMETRIES[3:4] + GEOMETRIES[5:], classes=(3, 3)), st.integers(2, 3))
@settings(max_examples=40)
def test_several_patches_are_never_above_the_worst_union(election, count):
    """Sound for every union; for k = 1 what `certify_votes` says, so exact for bands."""
    text, patch, size, votes, capacity, y, k = election
    cast = votes.cast[0].long().tolist()
    choices = oracles.ballots(len(cast[0]), capacity)
    unions = oracles.unions(oracles.touched(text, patch, size), count)
    unions = [some for some in unions if not any(some < other for other in unions)]  # a larger one can do as much
    assert int(certify(election, count).margin) <= truth(cast, unions, choices, y, k)
    if y == oracles.winner([sum(row[j] for row in cast) for j in range(len(cast[0]))]):
        own = certify_votes(votes, parse_ablation(text), PatchThreat(*patch, count=count), size)
        assert torch.equal(certify(election, count, k=1).margin, own.margin.long())  # type: ignore[union-attr]


@pytest.mark.parametrize("patch", ["2*1x1", "1x2"])
def test_rivals_share_one_budget(patch):
    """Six votes against three and two, two of them rewritten: either rival can pass, both only where one ablation
    votes for two classes.
    """
    voters = torch.tensor([2] * 6 + [0] * 3 + [1] * 2)
    votes = Votes(torch.nn.functional.one_hot(voters, 4)[None].bool(), torch.zeros(1, 11, 4).bool())
    threat, y = parse_threat(patch, (1, 11)), torch.tensor([2])
    for k, capacity, margin in ((1, 1, -2), (2, 1, 0), (2, 2, -1), (2, None, -1), (3, 2, 2)):
        found = certify_top_k(votes, y, k, Columns(1), threat, (1, 11), capacity=capacity)
        assert int(found.margin) == margin, (k, capacity)


def test_a_rival_that_leads_already_lends_nothing_to_the_others():
    """Without the first two of three votes class 2 trails class 0, and 1 and 3 need one and two of two new votes."""
    votes = Votes(torch.nn.functional.one_hot(torch.tensor([[2, 2, 2, 0, 0]]), 4).bool(), torch.zeros(1, 5, 4).bool())
    found = certify_top_k(votes, torch.tensor([2]), 3, Columns(1), PatchThreat(1, 2), (1, 5), capacity=1)
    assert int(found.margin) == truth(votes.cast[0].long().tolist(), [frozenset({0, 1})], oracles.ballots(4, 1), 2, 3)
    assert int(found.margin) == 0


class Thirds(Scored):
    """Contributions of 0 to 3 units, few enough to list."""

    unit = 3  # type: ignore[misc]

    def of(self, rows):
        return Thirds(self.cast[rows], self.slack)


@given(
    st.sampled_from([g for g in GEOMETRIES if g[0] in ("columns:1", "columns:2") and g[1] != (1, 3)]),
    st.integers(3, 9),
    st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=5, max_size=5),
    st.integers(0, 2),
    st.integers(1, 2),
)
@settings(max_examples=25)
def test_summed_scores_are_shared_out_exactly(geometry, capacity, rows, y, k):
    """Up to a unit's range for each class and the capacity for all: every division of it, listed."""
    text, patch, size = geometry
    rows = [row if sum(row) <= capacity else [3, 0, 0] for row in rows[: ABLATIONS[text, size]]]
    threat, ablation = PatchThreat(*patch), parse_ablation(text)
    votes = Thirds(torch.tensor([rows], dtype=torch.int32), 0)
    found = certify_top_k(votes, torch.tensor([y]), k, ablation, threat, size, capacity=capacity)
    choices = oracles.ballots(3, capacity, 3)
    assert int(found.margin) == truth(rows, oracles.touched(text, patch, size), choices, y, k)
    slack = certify_top_k(Thirds(votes.cast, 1), torch.tensor([y]), k, ablation, threat, size, capacity=capacity)
    kept = [sorted((max(0, v - 1), min(3, v + 1)))[j != y] for row in rows for j, v in enumerate(row)]
    worst = [kept[i : i + 3] for i in range(0, len(kept), 3)]
    assert int(slack.margin) == truth(worst, oracles.touched(text, patch, size), choices, y, k)


@pytest.mark.parametrize("threat", ["1x1", "2x3", "2*1x2", "3*2x1", "2x1,1x3"])
@pytest.mark.parametrize("text", ["columns:2", "rows:1", "blocks:2", "2*grid-columns:2", "columns:1+rows:2"])
def test_top_one_of_the_prediction_is_the_exact_certificate(text, threat):
    """k = 1 and y the prediction: the same margin, whatever the capacity; of votes, close votes, and scores."""
    size, ablation = (5, 6), parse_ablation(text)
    generator = torch.Generator().manual_seed(len(text) + len(threat))
    density = torch.rand(60, 1, 4, generator=generator)
    cast = torch.rand(60, ablation.count(*size), 4, generator=generator) < density
    cast[20:40] &= cast[20:40].cumsum(dim=2) <= 2
    cast[40:, :, 1:] = False
    close = torch.rand(cast.shape, generator=generator) < 0.1
    for votes in (Votes(cast, close & False), Votes(cast, close), Scored((cast * (UNITS - 7)).int(), 3)):
        own = certify_votes(votes, ablation, parse_threat(threat, size), size)
        for capacity in {None, int(votes.cast.sum(dim=2).max())}:
            found = certify_top_k(
                votes, own.prediction, 1, ablation, parse_threat(threat, size), size, capacity=capacity
            )
            assert torch.equal(found.margin, own.margin.long())  # type: ignore[union-attr]
            assert torch.equal(found.certified, own.certified)
            assert found.clean.all()


def random_votes(generator, classes, ablation, size):
    density = torch.rand(40, 1, classes, generator=generator) ** 2
    cast = torch.rand(40, ablation.count(*size), classes, generator=generator) < density
    return Votes(cast, torch.zeros_like(cast))


def test_more_classes_and_less_capacity_certify_more():
    """The margin grows with k, falls with the capacity, and is the least of the threats'."""
    generator, size = torch.Generator().manual_seed(0), (5, 9)
    ablation = Columns(2)
    votes = random_votes(generator, 7, ablation, size)
    y = torch.randint(7, (40,), generator=generator)
    most = int(votes.cast.sum(dim=2).max())
    margins = {}
    for text in ("1x1", "1x2", "1x1,5x2", "2*1x1", "3*1x1"):
        threat = parse_threat(text, size)
        for capacity in (most, 7):
            margins[text, capacity] = torch.stack(
                [certify_top_k(votes, y, k, ablation, threat, size, capacity=capacity).margin for k in range(1, 7)]
            )
            assert (margins[text, capacity].diff(dim=0) >= 0).all()
        assert (margins[text, most] >= margins[text, 7]).all()
    assert torch.equal(margins["1x1,5x2", 7], torch.minimum(margins["1x1", 7], margins["1x2", 7]))
    assert (margins["2*1x1", 7] <= margins["1x1", 7]).all()
    assert (margins["3*1x1", 7] <= margins["2*1x1", 7]).all()


@pytest.mark.parametrize("count", [1, 2])
def test_working_in_parts_changes_nothing(monkeypatch, count):
    """Images and rivals in small parts, and rivals without votes left out, against all of them at once."""
    generator, size = torch.Generator().manual_seed(1), (5, 9)
    votes = random_votes(generator, 9, Columns(2), size)
    votes.cast[:8, :, 4:] = False
    votes.cast[:4] = False
    y = torch.randint(9, (40,), generator=generator)
    threat = PatchThreat(1, 2, count)

    def margins():
        found = [
            [certify_top_k(votes.of(slice(n)), y[:n], k, Columns(2), threat, size).margin[:4] for k in (1, 2, 8)]
            for n in (4, 8, 12)
        ]
        return torch.stack([torch.stack(some) for some in found])

    whole = margins()
    assert torch.equal(whole[0], whole[1])
    assert torch.equal(whole[0], whole[2])
    monkeypatch.setattr(module, "_rivals", lambda possible, k: torch.arange(possible.shape[2]))
    assert torch.equal(margins(), whole)
    monkeypatch.undo()
    monkeypatch.setattr(module, "_CACHED", 50)
    assert torch.equal(margins(), whole)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=6))
def test_ranks_are_places_in_the_sorted_list(counts):
    """By votes, most first, the lower index first among equals."""
    found = ranks(torch.tensor([counts]).expand(len(counts), -1), torch.arange(len(counts)))
    assert found.tolist() == [oracles.place(counts, y) for y in range(len(counts))]


THETAS = [0.1, 0.15, 0.2, 0.25, 0.3, 1 / 3, 0.33333334, 0.34, 0.4, 0.5, 0.50000001, 0.6, 0.99]
THETAS += [nextafter(1 / m, to) for m in (2, 3, 6, 7, 9) for to in (0, 1)]


@pytest.mark.parametrize("theta", THETAS)
def test_no_ablation_votes_beyond_the_capacity(theta):
    """Of equal logits, of nearly equal ones, and of many random ones; ⌊1/θ⌋ classes of equal logits do get a vote."""
    generator = torch.Generator().manual_seed(0)
    for classes in (2, 3, 10, 1000):
        rule, most = Threshold(theta), 0
        capacity = rule.capacity(classes)
        for m in range(1, min(classes, 12) + 1):
            logits = torch.full((1, 30, classes), -1e4)
            logits[..., :m] = torch.randn(1, 30, 1, generator=generator) * 5
            logits[:, 10:20, :m] += 1e-7 * torch.randn(1, 10, m, generator=generator)
            logits[:, 20:] = torch.randn(1, 10, classes, generator=generator) * 3
            most = max(most, int(rule.votes(rule.scores(logits), 0.0).cast.sum(dim=2).max()))
        assert most <= capacity <= int(1.001 / theta)
        assert most >= min(classes, int(1 / (theta + 1e-6)))


def test_the_capacity_of_rules():
    """One vote under top-1, all where each class is for itself; and probabilities in units add up to one."""
    assert [rule.capacity(7) for rule in (TopOne(), SigmoidThreshold(), ClippedTanh())] == [1, 7, 7 * UNITS]
    assert [Threshold(theta).capacity(3) for theta in (0.3, 0.4, 0.6, 0.01)] == [3, 2, 1, 3]
    assert Threshold(0.33333334).capacity(10) == 3  # float32 has no number between it and 1/3
    assert [SummedScores().capacity(classes) - UNITS for classes in (10, 1000)] == [0, 7]  # additions rounded up
    generator = torch.Generator().manual_seed(0)
    for classes, scale in ((2, 1), (10, 0.01), (1000, 0.001), (1000, 4)):
        logits = torch.randn(4, 50, classes, generator=generator) * scale
        rule = SummedScores()
        most = int(rule.votes(rule.scores(logits), 0.0).cast.sum(dim=2).max())
        assert UNITS - classes <= most <= rule.capacity(classes) <= UNITS + classes


@pytest.mark.parametrize(
    "voting", [Threshold(0.3), Threshold(0.45), TopOne(), SummedScores(), ClippedTanh(0.5), SigmoidThreshold()], ids=str
)
def test_a_smoothed_classifier_certifies_its_votes(voting):
    """`certify_top_k` of the image is that of its votes, with the rule's own capacity and the model's guard."""
    model, x, threat = toys.smoothed(voting=voting), toys.images(6), PatchThreat(2, 2)
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    votes = model.votes(x)
    for k in (1, 2, 3):
        found = model.certify_top_k(x, y, threat, k)
        own = certify_top_k(votes, y, k, model.ablation, threat, toys.SIZE, capacity=voting.capacity(toys.CLASSES))
        assert torch.equal(found.margin, own.margin)
        assert (found.guard, found.k, found.threat, found.unit) == (model.guard, k, threat, votes.unit)
        assert torch.equal(found.clean, ranks(votes.counts, y) < k)
    top = model.certify_top_k(x, model.predict(x), threat, 1)
    assert torch.equal(top.margin, model.certify(x, threat).margin.long())  # type: ignore[union-attr]
    assert model.certify_top_k(x[:0], y[:0], threat, 2).margin.shape == (0,)


def test_a_base_that_breaks_the_assumptions_is_refused():
    """As `certify` refuses it."""
    model = toys.smoothed(toys.seeded(toys.Coupled))
    with pytest.raises(InvalidInput, match="mend the base"):
        model.certify_top_k(toys.images(3), torch.zeros(3).long(), PatchThreat(1, 1), 2)


VOTES = Votes(torch.ones(2, 4, 3).bool(), torch.zeros(2, 4, 3).bool())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"k": 0}, "k is 0; among 3 classes take 1 to 2"),
        ({"k": 3}, "k is 3; among 3 classes take 1 to 2"),
        ({"y": torch.tensor([0, 3])}, "y ranges from 0 to 3; classes are numbered 0 to 2"),
        ({"y": torch.tensor([-1, 0])}, "y ranges from -1 to 0"),
        ({"y": torch.tensor([1])}, r"y has shape \(1,\).*one class for each of 2 images"),
        ({"capacity": 0}, "capacity is 0; one ablation can add 1 to a count"),
        ({"capacity": 2}, "capacity is 2, but an ablation adds 3 to all counts together"),
        ({"ablation": Blocks(1)}, "votes have shapes"),
        ({"threat": PatchThreat(1, 5)}, "larger than the image"),
    ],
    ids=str,
)
def test_a_question_without_an_answer_is_refused(change, said):
    question = {"y": torch.tensor([0, 1]), "k": 1, "ablation": Columns(1), "threat": PatchThreat(1, 1)}
    question |= {"image_size": (2, 4), "capacity": None}
    with pytest.raises(InvalidInput, match=said):
        certify_top_k(VOTES, **(question | change))


def test_a_wrong_question_is_refused_before_any_scoring(monkeypatch):
    """k, y and a threat that does not fit; scores with less slack than the guard."""
    model, x, y = toys.smoothed(), toys.images(2), torch.tensor([0, 1])
    monkeypatch.setattr(type(model), "scores", lambda *_: pytest.fail("scored"))
    for asked, k, threat in ((y, 4, PatchThreat(1, 1)), (y + 3, 1, PatchThreat(1, 1)), (y, 1, PatchThreat(9, 9))):
        with pytest.raises(InvalidInput, match=r"k is 4|y ranges from 3 to 4|larger than the image"):
            model.certify_top_k(x, asked, threat, k)
    votes = Scored(torch.zeros(2, 4, 3, dtype=torch.int32), 3)
    with pytest.raises(InvalidInput, match="slack of 3"):
        certify_top_k(votes, y, 1, Columns(1), PatchThreat(1, 1), (2, 4), guard=1e-2)
