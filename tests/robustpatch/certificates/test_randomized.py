"""Randomized certificates: coverage over simulated classifiers, abstention, seeds, and samples that stay apart."""

from __future__ import annotations

from math import comb

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from robustpatch.ablations.kinds import Blocks, Columns, Rows
from robustpatch.ablations.sparse import SparseAblation
from robustpatch.certificates import randomized as sampling
from robustpatch.certificates.randomized import (
    Sampling,
    certify_randomized,
    from_votes,
    lower_bound,
    predict_randomized,
    touched_chance,
)
from robustpatch.classifiers.randomized import image_keys
from robustpatch.errors import InvalidInput
from robustpatch.threats.any_of import AnyOf
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Votes
from tests import oracles

BANDS, PATCH, SIZE = Columns(4), PatchThreat(5, 5), (5, 200)  # a patch touches 8 of the 200 bands
CRITICAL = 108  # votes of 200 for which p_c = 1/2 + τ: one more, and the certificate would be right
FEW = Sampling(selection=100, estimation=1_000)


def top_one(shares: torch.Tensor, n: int = 200) -> Votes:
    """Classifiers, one a row, of which so many of n ablations vote for class 1, and the rest for classes 0 and 2."""
    number = torch.arange(n)
    own = number < shares[:, None]
    cast = torch.stack([~own & (number % 2 == 0), own, ~own & (number % 2 == 1)], dim=2)
    return Votes(cast, torch.zeros_like(cast))


def certify(votes, alpha=0.05, **options):
    return certify_randomized(votes, BANDS, PATCH, SIZE, sampling=Sampling(100, 1_000, alpha=alpha), **options)


def failures(shares: torch.Tensor, alpha: float = 0.05) -> tuple[int, float]:
    """How many of the certificates are wrong (p_c ≤ 1/2 + τ), and how surprising so many are where alpha holds."""
    wrong = int((certify(top_one(shares), alpha).certified & (shares <= CRITICAL)).sum())
    return wrong, float(binomtest(wrong, len(shares), alpha, alternative="greater").pvalue)


def test_the_critical_share():
    """Where the simulated classifiers stand: 108 of 200 is 1/2 + τ."""
    assert touched_chance(BANDS, PATCH, *SIZE) == 8 / 200
    assert (CRITICAL - 8) / 200 == 0.5


@pytest.mark.parametrize(("where", "alpha"), [("at", 0.05), ("at", 0.001), ("around", 0.05)])
def test_coverage_over_ten_thousand_classifiers(where, alpha):
    """No significant excess of wrong certificates over alpha, and as many as the binomial distribution says.

    Exactly at the edge, p_c = 1/2 + τ, every certificate is wrong. With 1,000 samples one is given with a chance of
    0.0462 where alpha is 0.05 (514 of 10,000 seen, p = 0.27 under alpha), and 0.00081 where it is 0.001 (11 seen,
    p = 0.42): the count is discrete, which makes the bound conservative by 8% and 19%. Around the edge, 102 to 114
    votes of 200, 0.0067 are wrong where alpha is 0.05 (81 seen): conservative by a factor of 7 already there.
    """
    shares = torch.full((10_000,), CRITICAL)
    if where == "around":
        shares = torch.randint(CRITICAL - 6, CRITICAL + 7, (10_000,), generator=torch.Generator().manual_seed(0))
    wrong, chance = failures(shares, alpha)
    each = binom.sf(least_certified(alpha) - 1, 1_000, shares.numpy() / 200) * (shares.numpy() <= CRITICAL)
    exact = float(each.mean())
    assert chance > 1e-3
    assert binomtest(wrong, 10_000, exact).pvalue > 1e-3
    assert (0.8 * alpha < exact <= alpha) if where == "at" else (exact < alpha / 7)


def least_certified(alpha: float) -> int:
    """The smallest count of 1,000 that is certified at 1/2 + τ."""
    hits = torch.arange(1_001)
    return int((lower_bound(hits, 1_000, alpha) > CRITICAL / 200 + 1e-9).nonzero()[0, 0])


@pytest.mark.parametrize(
    ("name", "bug"),
    [
        ("lower_bound", lambda hits, number, alpha: hits.double() / number),
        ("lower_bound", lambda hits, number, alpha: lower_bound(hits, number, 2 * alpha)),
        ("touched_chance", lambda ablation, threat, height, width: 7 / 200),
    ],
)
def test_coverage_notices_a_bug(name, bug, monkeypatch):
    """The share itself for its bound, twice the alpha, or a Δ of one less: far more than alpha allows."""
    monkeypatch.setattr(sampling, name, bug)
    assert failures(torch.full((3_000,), CRITICAL))[1] < 1e-9


def test_coverage_notices_samples_used_twice(monkeypatch):
    """Choosing the class by the samples that bound its share is wrong where several classes stand at the edge."""
    assert failures_of_many() > 1e-3
    real = sampling.stream_seed
    monkeypatch.setattr(sampling, "stream_seed", lambda seed, purpose, key: real(seed, "both", key))
    assert failures_of_many() < 1e-9


def failures_of_many() -> float:
    """Two classes at one half each, no patch to speak of, any certificate wrong: how surprising so many are."""
    cast = torch.nn.functional.one_hot(torch.arange(200) % 2, 2).bool().expand(2_000, -1, -1)
    options = Sampling(selection=400, estimation=400)
    votes = Votes(cast, torch.zeros_like(cast))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "touched_chance", lambda *_: 0.0)
        found = certify_randomized(votes, Columns(1), PatchThreat(1, 1), (1, 200), sampling=options)
    wrong = int(found.certified.sum())
    return float(binomtest(wrong, len(cast), options.alpha, alternative="greater").pvalue)


@given(st.integers(1, 400), st.data(), st.floats(1e-6, 0.5))
def test_the_bound_is_clopper_pearsons(number, data, alpha):
    """P(Bin(n, p_low) ≥ k) = alpha, summed term by term where n is small; 0 for no hits, alpha^(1/n) for all."""
    hits = data.draw(st.integers(0, number))
    (low,) = lower_bound(torch.tensor([hits]), number, alpha).tolist()
    if hits == 0:
        assert low == 0
        return
    assert 0 < low < hits / number or (hits == number and low == pytest.approx(alpha ** (1 / number)))
    assert binom.sf(hits - 1, number, low) == pytest.approx(alpha, rel=1e-7)
    if number <= 40:
        tail = sum(comb(number, k) * low**k * (1 - low) ** (number - k) for k in range(hits, number + 1))
        assert tail == pytest.approx(alpha, rel=1e-9)
    interval = binomtest(hits, number, alternative="greater").proportion_ci(1 - alpha, method="exact")
    assert low == pytest.approx(interval.low, rel=1e-7)


@pytest.mark.parametrize("text", ["columns:2", "columns:3/2", "rows:2", "blocks:2x3"])
@pytest.mark.parametrize("size", [(5, 7), (7, 5)])
def test_the_chance_of_being_touched(text, size):
    """Δ/N by brute force, over every placement and either threat; both patches where there are two."""
    kind, numbers = text.split(":")
    first, _, rest = numbers.partition("/")
    sides = [int(side) for side in first.split("x")]
    stride = int(rest or 1)
    ablation = {"columns": Columns, "rows": Rows}[kind](sides[0], stride) if kind != "blocks" else Blocks(*sides)
    threats = [PatchThreat(2, 1), PatchThreat(1, 3)]
    n = len(oracles.kept(text, *size))
    each = [max(map(len, oracles.touched(text, (one.height, one.width), size))) / n for one in threats]
    assert [touched_chance(ablation, one, *size) for one in threats] == each
    assert touched_chance(ablation, AnyOf(threats), *size) == max(each)
    union = max(map(len, oracles.unions(oracles.touched(text, (2, 1), size), 2))) / n
    assert touched_chance(ablation, PatchThreat(2, 1, 2), *size) >= union
    assert touched_chance(SparseAblation(2), AnyOf(threats), *size) == SparseAblation(2).touched_chance(
        threats[1], *size
    )


def test_what_is_certified():
    """The bound against 1/2 + τ, recounted from the samples; the margin is their difference, the method is named."""
    shares = torch.tensor([0, 90, 104, 110, 116, 130, 200])
    votes = top_one(shares)
    found = certify(votes)
    tally = from_votes(votes, [i.to_bytes(8, "big") for i in range(7)], 0)("estimation", 1_000)
    low = lower_bound(tally.cast[:, 1], 1_000, 0.05)
    sure = shares >= 104
    assert torch.allclose(found.margin[sure], low[sure] - 0.54, atol=1e-8)
    assert torch.equal(found.certified, found.margin > 0)
    assert found.certified[-2:].all()
    assert not found.certified[:3].any()
    assert found.prediction[sure & (low > 0.5)].eq(1).all()
    assert (found.method, found.confidence, found.evidence, found.placement_margin) == ("randomized", 0.95, None, None)
    assert found.margin.dtype == torch.float64


def test_a_share_of_one_half_or_less_is_abstained_from():
    """No class has more than half: -1, by its bound. Certain ones are named."""
    found = certify(top_one(torch.tensor([70, 100, 200])))
    assert found.prediction.tolist() == [-1, -1, 1]
    assert found.certified.tolist() == [False, False, True]


def test_prediction_abstains_where_the_lead_could_be_chance():
    """Of 3,000 classifiers whose two best classes tie exactly, or nearly, at most alpha are named; the sure all are."""
    wrong = 0
    options = Sampling(prediction=500, alpha_prediction=0.05)
    tie = torch.nn.functional.one_hot(torch.arange(201) % 2, 3).bool()  # 101 votes for class 0, 100 for class 1
    found = predict_randomized(Votes(tie.expand(3_000, -1, -1), torch.zeros(3_000, 201, 3).bool()), sampling=options)
    wrong = int((found == 1).sum())
    assert wrong > 0
    assert binomtest(wrong, 3_000, 0.05, alternative="greater").pvalue > 1e-3
    assert (found == -1).float().mean() > 0.85
    assert (predict_randomized(top_one(torch.tensor([150, 200]))) == 1).all()
    few = predict_randomized(top_one(torch.tensor([200] * 5)), sampling=Sampling(prediction=10, alpha_prediction=0.001))
    assert (few == -1).all()  # ten of ten: 2·2^-10 = 0.00195
    many = Sampling(prediction=11, alpha_prediction=0.001)
    assert (predict_randomized(top_one(torch.tensor([200] * 5)), sampling=many) == 1).all()


def test_samples_depend_on_the_seed_the_image_and_the_purpose_alone():
    """Alone or in company, in another order, twice: the same; for another seed, key or purpose others."""
    votes = top_one(torch.full((6,), 110))
    keys = [bytes([i]) for i in range(6)]
    whole = certify(votes, keys=keys)
    assert torch.equal(whole.margin, certify(votes, keys=keys).margin)
    assert len(set(whole.margin.tolist())) > 1
    back = certify(votes, keys=keys[::-1])
    assert torch.equal(back.margin.flip(0), whole.margin)
    one = Votes(votes.cast[2:3], votes.close[2:3])
    assert torch.equal(certify(one, keys=keys[2:3]).margin, whole.margin[2:3])
    other = certify_randomized(votes, BANDS, PATCH, SIZE, sampling=Sampling(100, 1_000, seed=1), keys=keys)
    assert not torch.equal(other.margin, whole.margin)


def test_selection_and_estimation_are_independent():
    """Over 2,000 images with the same votes, the counts for the three purposes are uncorrelated; used twice, not."""
    votes = top_one(torch.full((2_000,), 110))
    draw = from_votes(votes, [i.to_bytes(2, "big") for i in range(2_000)], 0)
    counts = torch.stack([draw(name, 300).cast[:, 1] for name in ("selection", "estimation", "prediction")]).double()
    correlation = torch.corrcoef(counts)
    assert (correlation - torch.eye(3)).abs().max() < 0.08  # 3.6 standard deviations
    assert torch.equal(draw("selection", 300).cast[:, 1], counts[0].long())
    mean, deviation = counts.mean(), counts.std()
    assert float(mean) == pytest.approx(300 * 0.55, abs=0.5)
    assert float(deviation) == pytest.approx((300 * 0.55 * 0.45) ** 0.5, rel=0.05)


def test_close_votes_count_against_the_certificate():
    """A vote too close to call is none for the class; how many were sampled is said."""
    sure = top_one(torch.full((3,), 180))
    close = Votes(sure.cast, sure.cast & (torch.arange(200) < 90)[:, None])
    with_close, without = certify(close), certify(sure)
    assert without.certified.all()
    assert not with_close.certified.any()
    assert (with_close.prediction == -1).all()
    assert without.close.tolist() == [0, 0, 0]
    assert all(abs(count - 450) < 80 for count in with_close.close.tolist())


def test_either_of_several_threats():
    """The certificate is for the worst member."""
    votes = top_one(torch.full((4,), 120))
    threats = [PatchThreat(1, 1), PatchThreat(5, 5), PatchThreat(5, 2)]
    either = certify_randomized(votes, BANDS, AnyOf(threats), SIZE, sampling=FEW)
    each = [certify_randomized(votes, BANDS, one, SIZE, sampling=FEW).margin for one in threats]
    assert torch.equal(either.margin, torch.stack(each).amin(dim=0))


def test_keys_of_images():
    """Equal values, equal keys, in whatever precision holds them; nothing else."""
    x = torch.rand(3, 1, 4, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert image_keys(x) == image_keys(x.float()) == image_keys(x.flip(0))[::-1]
    assert len(set(image_keys(x))) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selection": 0}, "selection is 0; it must be a whole number of samples"),
        ({"estimation": -3}, "estimation is -3; it must be a whole number"),
        ({"prediction": True}, "prediction is True; it must"),
        ({"alpha": 0.0}, "alpha is 0.0; it is the chance of an error, strictly between 0 and 1"),
        ({"alpha": 1.0}, "alpha is 1.0;"),
        ({"alpha": float("nan")}, "alpha is nan;"),
        ({"alpha_prediction": -0.1}, "alpha_prediction is -0.1;"),
    ],
)
def test_parameters_that_are_none(options, message):
    """Each with its name, its value and a remedy."""
    with pytest.raises(InvalidInput, match=message):
        Sampling(**options)


def test_votes_that_are_none():
    """Not top-1, of another shape, or without a key each."""
    votes = top_one(torch.tensor([120, 130]))
    two = Votes(votes.cast | (torch.arange(3) == 0), votes.close)
    none = Votes(votes.cast & (torch.arange(3) == 0), votes.close)
    for wrong in (two, none):
        with pytest.raises(InvalidInput, match=r"votes are not top-1.*TopOne\(\)"):
            certify(wrong)
        with pytest.raises(InvalidInput, match="votes are not top-1"):
            predict_randomized(wrong)
    with pytest.raises(InvalidInput, match=r"columns:4 on 5x200 needs \[B, 200, K\] twice"):
        certify(Votes(votes.cast[:, :9], votes.close[:, :9]))
    with pytest.raises(InvalidInput, match="keys are 1, but votes are of 2 images"):
        certify(votes, keys=[b"x"])
    with pytest.raises(InvalidInput, match="larger than the image"):
        certify_randomized(votes, BANDS, PatchThreat(6, 1), SIZE)
    assert len(certify(Votes(votes.cast[:0], votes.close[:0])).prediction) == 0
