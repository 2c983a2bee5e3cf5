"""Summed scores: units against exact rationals, and their certificate against every corruption within reach."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.surfaces import whole_view
from attacks.surfaces.smoothed import TouchedView
from attacks.votes import worst_votes
from evaluate.runs.attacking import damage
from robustpatch.ablations.kinds import Blocks, Columns
from robustpatch.ablations.parse import parse_ablation
from robustpatch.certificates.exact import certify_votes, largest_certified
from robustpatch.certificates.margins import rival_margins
from robustpatch.errors import InvalidInput
from robustpatch.proof import verifier as proof
from robustpatch.threats.parse import parse_threat
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.parse import parse_voting
from robustpatch.voting.rules import Threshold, TopOne
from robustpatch.voting.scored import ClippedLogits, ClippedTanh, SigmoidThreshold, Summed, SummedScores
from robustpatch.voting.votes import UNITS, Scored, Votes
from tests import oracles, toys

RULES = [SummedScores(), ClippedTanh(0.5, 1.0), ClippedLogits(4.0)]
GEOMETRIES = [  # ablation, patch, image: few ablations, so that every corruption can be listed
    ("columns:1", (1, 1), (2, 4)),
    ("columns:2", (1, 1), (1, 5)),  # two touched, the last band and the first among them
    ("rows:1", (2, 1), (4, 2)),
    ("blocks:1", (1, 1), (2, 3)),
    ("columns:2/3", (1, 1), (1, 7)),
    ("columns:1+rows:1", (1, 1), (2, 2)),
]
ABLATIONS = {(text, size): parse_ablation(text).count(*size) for text, _, size in GEOMETRIES}
LEVELS = [0, 1, 2, UNITS // 2, UNITS - 2, UNITS - 1, UNITS]  # with ties, and near both ends, where slack is cut off


@st.composite
def elections(draw, geometries=GEOMETRIES, slacks=(0, 1, 3)):
    """A geometry and contributions [1,N,K], with many ties."""
    text, patch, size = draw(st.sampled_from(geometries))
    k, n = draw(st.integers(2, 3)), ABLATIONS[text, size]
    cast = draw(st.lists(st.lists(st.sampled_from(LEVELS), min_size=k, max_size=k), min_size=n, max_size=n))
    return text, patch, size, Scored(torch.tensor([cast], dtype=torch.int32), draw(st.sampled_from(slacks)))


def worst_lead(cast: list[list[int]], touched: frozenset[int], slack: int) -> int:
    """The least lead of the clean winner over all extreme contents of the touched ablations (each class 0 or all),
    where every untouched contribution of a class is moved by the slack, up or down and within its range.
    """
    classes = range(len(cast[0]))
    c = oracles.winner([sum(row[k] for row in cast) for k in classes])
    leads = []
    for moved in product((-1, 1), repeat=len(classes)):
        kept = [
            sum(min(UNITS, max(0, row[k] + moved[k] * slack)) for n, row in enumerate(cast) if n not in touched)
            for k in classes
        ]
        for added in product(range(len(touched) + 1), repeat=len(classes)):
            leads.append(oracles.lead([kept[k] + UNITS * added[k] for k in classes], c))
    return min(leads)


@given(elections())
@settings(max_examples=80)
def test_the_exact_certificate_is_the_truth(election):
    """The margin of every placement is the least lead over all extreme corruptions and all rounding."""
    text, patch, size, votes = election
    certificate = certify_votes(votes, parse_ablation(text), PatchThreat(*patch), size)
    lists = votes.cast[0].tolist()
    leads = [worst_lead(lists, touched, votes.slack) for touched in oracles.touched(text, patch, size)]
    assert int(certificate.prediction) == oracles.winner(votes.cast[0].sum(dim=0).tolist())
    assert certificate.placement_margin is not None
    assert certificate.placement_margin[0].tolist() == leads
    assert bool(certificate.certified) == (min(leads) >= 0)
    assert certificate.unit == UNITS
    margin = certify_votes(votes, parse_ablation(text), PatchThreat(*patch), size, method="margin").margin
    assert margin is not None
    assert int(margin) <= min(leads)


@given(elections(), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_no_content_and_no_rounding_overturns_what_is_certified(election, chance):
    """Arbitrary contributions in the touched set, any rounding outside of it: never below the margin of that set."""
    text, patch, size, votes = election
    ablation = parse_ablation(text)
    prediction = int(certify_votes(votes, ablation, PatchThreat(*patch), size).prediction)
    margins = certify_votes(votes, ablation, PatchThreat(*patch), size).placement_margin
    assert margins is not None
    for touched, margin in zip(oracles.touched(text, patch, size), margins[0].tolist(), strict=True):
        for _ in range(5):
            counts = [0] * votes.cast.shape[2]
            for n, row in enumerate(votes.cast[0].tolist()):
                for k, value in enumerate(row):
                    moved = min(UNITS, max(0, value + chance.randint(-votes.slack, votes.slack)))
                    counts[k] += chance.choice([0, UNITS, chance.randint(0, UNITS)]) if n in touched else moved
            assert oracles.lead(counts, prediction) >= margin


@given(elections(geometries=GEOMETRIES[:4]), st.integers(2, 3))
@settings(max_examples=40)
def test_several_patches_against_every_union(election, count):
    """Bands: the margin is the least lead over all unions. Blocks: never above it."""
    text, patch, size, votes = election
    certificate = certify_votes(votes, parse_ablation(text), PatchThreat(*patch, count=count), size)
    unions = oracles.unions(oracles.touched(text, patch, size), count)
    worst = min(worst_lead(votes.cast[0].tolist(), union, votes.slack) for union in unions)
    assert certificate.margin is not None
    assert certificate.placement_margin is None
    assert int(certificate.margin) <= worst
    assert text.startswith("blocks") or int(certificate.margin) == worst


@given(st.integers(0, 2**20), st.sampled_from(["columns:2", "blocks:2", "rows:1", "columns:1+rows:2"]))
@settings(max_examples=20)
def test_votes_are_scores_of_all_or_nothing(seed, text):
    """The units of boolean votes are certified where the votes are, with either method, for one patch or two."""
    size, ablation = (5, 6), parse_ablation(text)
    generator = torch.Generator().manual_seed(seed)
    density = torch.rand(40, 1, 3, generator=generator)
    cast = torch.rand(40, ablation.count(*size), 3, generator=generator) < density
    votes, scores = Votes(cast, torch.zeros_like(cast)), Scored((cast * UNITS).int(), 0)
    for threat in ("1x1", "2x1", "2*1x1"):
        for method in ("exact", "margin"):
            both = [
                certify_votes(some, ablation, parse_threat(threat, size), size, method=method)
                for some in (votes, scores)
            ]
            assert torch.equal(both[0].certified, both[1].certified)
            assert torch.equal(both[0].prediction, both[1].prediction)
    for method in ("exact", "margin"):
        sides = [largest_certified(some, ablation, size, method) for some in (votes, scores)]
        assert torch.equal(*sides)


@given(
    st.lists(st.tuples(st.floats(0, 1, width=32), st.floats(-1, 1)), min_size=1, max_size=50),
    st.sampled_from([0.0, 2**-16, 1e-4, 3.1 * 2**-16, 1e-2]),
)
def test_a_score_that_moves_within_the_guard_moves_within_the_slack(pairs, guard):
    """Units are floor(2^16 s) exactly, and moved by at most `slack` when s moves by at most the guard."""
    before = torch.tensor([s for s, _ in pairs])
    after = (before.double() + guard * torch.tensor([by for _, by in pairs]).double()).clamp(0, 1)
    votes = SummedScores().votes(before[None, :, None], guard)
    units = [int(Fraction(s) * UNITS) for s in before.tolist()]
    assert votes.cast[0, :, 0].tolist() == units
    assert int((votes.cast[0, :, 0] - (after * UNITS).floor()).abs().max()) <= votes.slack
    assert votes.slack - 1 < guard * UNITS <= votes.slack


def test_as_many_ablations_as_imagenet_has_blocks_do_not_overflow():
    """50,176 full contributions are more units than int32 holds: counts, box sums, unions, margins against Python."""
    ablation, size = Blocks(20, 20), (224, 224)
    n = ablation.count(*size)
    cast = torch.full((1, n, 2), UNITS, dtype=torch.int32)
    cast[0, :, 1] = 5
    votes = Scored(cast, 7)
    certificate = certify_votes(votes, ablation, PatchThreat(32, 32), size)
    assert votes.counts[0].tolist() == [n * UNITS, n * 5]
    affected, lead = (32 + 20 - 1) ** 2, n * (UNITS - 7 - 12)
    assert lead > 2**31
    assert certificate.margin is not None
    assert int(certificate.margin) == lead - affected * (UNITS - 7 - 12 + UNITS)
    margin = certificate.by("margin").margin
    assert margin is not None
    assert int(margin) == lead - 2 * affected * UNITS
    assert int(certify_votes(votes, ablation, PatchThreat(1, 1, 2), size).margin) < lead  # type: ignore[arg-type]
    for touched in (Columns(3).touched(PatchThreat(1, 1), 1, 9), ablation.touched(PatchThreat(1, 1), *size)):
        values = torch.full((1, touched.num_ablations, 1), 2**32)
        assert int(touched.worst_union(values, touched.num_ablations)) == touched.num_ablations * 2**32


@given(elections(slacks=(0,)))
@settings(max_examples=40)
def test_the_adversary_of_scores_reaches_the_margin(election):
    """At no slack its lead is the certificate's, and what it casts differs in one touched set alone; unions too."""
    text, patch, size, votes = election
    ablation = parse_ablation(text)
    for count in (1, 2):
        threat = PatchThreat(*patch, count=count)
        worst = worst_votes(votes.cast, ablation, threat, size)
        margin = certify_votes(votes, ablation, threat, size).margin
        assert margin is not None
        assert int(worst.lead) == int(margin) or (count == 2 and ("blocks" in text or "+" in text))
        assert int(worst.lead) >= int(margin)
        assert bool(worst.refuted) == (int(worst.lead) < 0)
        changed = set((worst.votes != votes.cast).any(dim=2)[0].nonzero()[:, 0].tolist())
        assert any(changed <= union for union in oracles.unions(oracles.touched(text, patch, size), count))


@pytest.mark.parametrize("voting", [*RULES, SigmoidThreshold()], ids=str)
@pytest.mark.parametrize("base", ["enumerated", "one pass"])
def test_a_smoothed_classifier_agrees_with_itself(voting, base):
    """predict, certify, forward and `rival_margins` of the same scores; the incremental view equals the whole one."""
    one_pass = base == "one pass"
    model = toys.smoothed(toys.strip() if one_pass else toys.linear(), Columns(2), voting=voting)
    x, threat = toys.images(6), PatchThreat(2, 2)
    certificate = model.certify(x, threat)
    votes = model.votes(x)
    assert torch.equal(model.predict(x), certificate.prediction)
    assert torch.equal(model(x).argmax(dim=1), certificate.prediction)
    assert torch.equal(votes.counts, voting.votes(voting.scores(model.logits(x)), model.guard).counts)
    touched = model.ablation.touched(threat, *toys.SIZE)
    assert certificate.margin is not None
    least = rival_margins(votes, certificate.prediction, touched).amin(dim=(1, 2))
    assert torch.equal(least, certificate.margin.long())
    placement = torch.arange(6)[:, None]
    patched = x.clone()
    for i, (row, column) in enumerate(threat.placements(*toys.SIZE)[:6].tolist()):
        patched[i, :, row : row + 2, column : column + 2] = 1 - patched[i, :, row : row + 2, column : column + 2]
    y = certificate.prediction
    whole, some = whole_view(model, x, y), TouchedView.of(model, y, votes.cast, [touched], placement)
    (_, one), (value, other) = whole(patched), some(patched)
    assert torch.equal(one, other)
    assert torch.equal(one, model.predict(patched))
    assert torch.isfinite(value).all()
    found = damage(model, patched, y, threat, threat.placements(*toys.SIZE)[:6, None])
    assert torch.equal(found.lead < 0, one != y)


@pytest.mark.parametrize("voting", RULES, ids=str)
def test_soft_scores_are_the_scores_and_lead_somewhere(voting):
    """Within half a unit of what is counted; the log-odds are theirs; a gradient everywhere."""
    logits = torch.tensor([[[3.0, -2.0, 0.5], [-1.0, 0.2, 7.0]]], requires_grad=True)
    scores = voting.scores(logits)
    torch.testing.assert_close(voting.votes(scores, 0.0).cast / UNITS, scores, atol=2.0 / UNITS, rtol=0)
    torch.testing.assert_close(voting.soft(logits), scores)
    torch.testing.assert_close(torch.sigmoid(voting.margins(logits)), scores, atol=2e-4, rtol=0)
    for made in (voting.soft(logits)[0, 0, 0], voting.margins(logits)[0, 0, 0]):
        (gradient,) = torch.autograd.grad(made, logits, retain_graph=True)
        assert gradient[0, 0, 0] > 0


def test_the_links_are_those_of_the_papers():
    """tanh(scale·x - shift) of Clipped BagNet on [0, 1]; that of BagCert; logits clipped at 0 of PatchGuard."""
    logits = torch.tensor([[[0.0, 20.0, -7.0]]])
    expected = (torch.tanh(0.05 * logits - 1) + 1) / 2
    torch.testing.assert_close(ClippedTanh().scores(logits), expected)
    assert SigmoidThreshold().votes(SigmoidThreshold().scores(logits), 0.0).cast[0, 0].tolist() == [True, True, False]
    assert SigmoidThreshold().sharp(logits)[0, 0].tolist() == [1.0, 1.0, 0.0]
    assert ClippedLogits(10.0).scores(logits)[0, 0].tolist() == [0.0, 1.0, 0.0]


def test_shares_that_float32_rounds_together_keep_their_order():
    """One unit apart beyond 2^24: the argmax is still that of the counts, and a tie is still one."""
    cast = torch.full((3, 2000, 3), UNITS // 2, dtype=torch.int32)
    cast[0, 0, 2] += 1
    cast[1, 0, 0] -= 1
    assert (Scored(cast, 0).shares.argmax(dim=1) == torch.tensor([2, 1, 0])).all()


@pytest.mark.parametrize(
    "text", ["scores", "tanh:0.05:1.0", "tanh:1.0:-2.0", "relu:16.0", "sigmoid:0.5", "threshold:0.3", "top1"]
)
def test_the_text_of_a_rule_is_read_again(text):
    assert str(parse_voting(text, 0.01)) == text
    assert parse_voting(text, 0.01).guard == 0.01


def test_numbers_left_out_are_the_usual_ones():
    assert parse_voting("tanh") == ClippedTanh(0.05, 1.0)
    assert parse_voting("sigmoid") == SigmoidThreshold(0.5)
    assert parse_voting("relu") == ClippedLogits(16.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tanh:0", "scale is 0.0"),
        ("tanh:1:2:3", "voting is 'tanh:1:2:3'"),
        ("relu:-1", "top is -1.0"),
        ("sigmoid:1", "theta is 1.0"),
        ("scores:1", "voting is 'scores:1'"),
        ("tanh:much", "voting is 'tanh:much'"),
    ],
)
def test_a_rule_without_a_meaning_is_refused(text, said):
    with pytest.raises(InvalidInput, match=said):
        parse_voting(text)


def test_scores_that_are_no_units_are_refused():
    for cast in (torch.zeros(1, 2, 2, dtype=torch.int64), torch.full((1, 2, 2), -1, dtype=torch.int32)):
        with pytest.raises(InvalidInput, match="cast scores"):
            Scored(cast, 0)
    with pytest.raises(InvalidInput, match="65537"):
        Scored(torch.full((1, 2, 2), UNITS + 1, dtype=torch.int32), 0)
    votes = Scored(torch.zeros(1, 4, 2, dtype=torch.int32), 3)
    with pytest.raises(InvalidInput, match="slack of 3"):
        certify_votes(votes, Columns(1), PatchThreat(1, 1), (1, 4), guard=1e-2)


@given(elections())
@settings(max_examples=15)
def test_the_proof_on_disk_is_verified_by_plain_loops(tmp_path_factory, election):
    """Every claim follows; a claimed margin above the worst, or a slack below the guard, does not."""
    text, patch, size, votes = election
    path = tmp_path_factory.mktemp("proof") / "scores.npz"
    guard = votes.slack / UNITS
    certificate = certify_votes(votes, parse_ablation(text), PatchThreat(*patch), size, guard=guard)
    certificate.save(path)
    assert proof.verify(path) == []
    certificate.margin.add_(1)  # type: ignore[union-attr]
    certificate.save(path)
    assert any("margin" in line for line in proof.verify(path))
    certificate = certify_votes(Scored(votes.cast, 1), parse_ablation(text), PatchThreat(*patch), size)
    object.__setattr__(certificate, "guard", 0.5)
    certificate.save(path)
    assert any("slack" in line for line in proof.verify(path))


def test_a_rule_of_another_link_wants_a_scoring_of_its_own():
    assert {rule.link for rule in (Threshold(), TopOne(), SummedScores())} == {"softmax"}
    assert len({rule.link for rule in (*RULES, SigmoidThreshold(), ClippedTanh())}) == 5
    assert isinstance(RULES[1], Summed)
