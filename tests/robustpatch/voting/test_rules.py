"""scores -> votes: the threshold met exactly, ties, what is too close to call, and the differentiable stand-in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustpatch.errors import InvalidInput
from robustpatch.voting.parse import parse_voting
from robustpatch.voting.rules import Threshold, TopOne, Votes, first_argmax, log_odds


def test_the_threshold_is_met_by_equality():
    """PITFALLS 18: score ≥ θ, not >; one step below casts nothing."""
    for theta in (0.25, 0.3, 0.5, 0.7):
        at = torch.tensor(theta)
        scores = torch.stack([at, torch.nextafter(at, torch.tensor(0.0)), torch.nextafter(at, torch.tensor(1.0))])
        votes = Threshold(theta).votes(scores[None, None], guard=0.0)
        assert votes.cast.flatten().tolist() == [True, False, True]
        assert votes.close.flatten().tolist() == [True, False, False]


def test_close_under_a_threshold_is_within_the_guard():
    """|score - θ| ≤ guard, edges included, on both sides (all numbers exact in binary)."""
    scores = torch.tensor([0.25, 0.375, 0.5, 0.625, 0.75, 0.376, 0.374, 0.626])
    close = Threshold(0.5).votes(scores[None, None], guard=0.125).close.flatten()
    assert close.tolist() == [False, True, True, True, False, True, False, False]


def test_a_threshold_names_several_classes_or_none():
    """0.4 and 0.35 both meet 0.3; a flat distribution of ten meets nothing."""
    scores = torch.tensor([[[0.4, 0.35, 0.25], [0.9, 0.05, 0.05], [0.299, 0.299, 0.29]]])
    cast = Threshold(0.3).votes(scores, 0.0).cast[0].tolist()
    assert cast == [[True, True, False], [True, False, False], [False, False, False]]


def test_top_one_takes_the_lowest_index_among_equals():
    """One vote an ablation; exact ties are close even at guard 0."""
    scores = torch.tensor([[[0.25, 0.375, 0.375], [0.5, 0.25, 0.25], [0.3125, 0.3125, 0.3125]]])
    votes = TopOne().votes(scores, 0.0)
    assert votes.cast[0].tolist() == [[False, True, False], [True, False, False], [True, False, False]]
    assert votes.close[0].tolist() == [[False, True, True], [False] * 3, [True] * 3]


def test_close_under_top_one_is_within_twice_the_guard_of_the_largest():
    """Both scores may move by the guard: 2·guard below the largest is close, a step further is not."""
    scores = torch.tensor([[[0.5, 0.25, 0.25], [0.5, 0.375, 0.125], [0.5, 0.2499, 0.2501]]])
    close = TopOne().votes(scores, guard=0.125).close[0].tolist()
    assert close == [[True, True, True], [True, True, False], [True, False, True]]


@given(st.integers(0, 10_000), st.sampled_from([0.0, 1e-3, 0.05]), st.sampled_from([Threshold(0.3), TopOne()]))
def test_votes_that_a_change_within_the_guard_turns_over_are_close(seed, guard, voting):
    """Move every score by at most the guard: each vote that changes was marked."""
    generator = torch.Generator().manual_seed(seed)
    scores = (torch.rand(1, 200, 3, generator=generator, dtype=torch.float64) * 6).softmax(dim=-1)
    moved = scores + guard * (2 * torch.rand(scores.shape, generator=generator, dtype=torch.float64) - 1)
    before, after = voting.votes(scores, guard), voting.votes(moved, guard)
    assert not ((before.cast != after.cast) & ~before.close).any()


@given(st.integers(0, 10_000), st.sampled_from([0.1, 1.0, 5.0]))
def test_log_odds_equals_the_formula_in_float64(seed, scale):
    """log p - log(1 - p), to float32's precision."""
    logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(seed)) * scale
    p = logits.double().softmax(dim=-1)
    torch.testing.assert_close(log_odds(logits).double(), p.log() - (1 - p).log(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "logits",
    [
        [100.0, -100.0, 0.0],
        [-100.0, 100.0],
        [0.0, 0.0, 0.0],
        [100.0, 100.0, -100.0],
        [30.0, 0.0, 1.0],
        [88.0, 87.0, -100.0],
        [0.0, 0.0],
    ],
)
def test_log_odds_is_finite_with_a_gradient_in_saturation(logits):
    """PITFALLS 23: where p rounds to 0 or 1, d log_odds_k / d logit_k is still 1, and no value or gradient is NaN."""
    z = torch.tensor(logits, requires_grad=True)
    odds = log_odds(z)
    expected = torch.tensor(logits, dtype=torch.float64)
    others = [torch.cat([expected[:k], expected[k + 1 :]]).logsumexp(0) for k in range(len(logits))]
    torch.testing.assert_close(odds.double(), expected - torch.stack(others), atol=1e-4, rtol=1e-5)
    for k in range(len(logits)):
        (gradient,) = torch.autograd.grad(odds[k], z, retain_graph=True)
        assert torch.isfinite(gradient).all()
        assert float(gradient[k]) == pytest.approx(1.0, abs=1e-5)
        assert float(gradient.sum()) == pytest.approx(0.0, abs=1e-5)


@given(st.integers(0, 10_000), st.sampled_from([0.1, 0.3, 0.5, 0.9]))
def test_soft_votes_are_above_one_half_where_the_vote_is_cast(seed, theta):
    """sigmoid(logit p - logit θ) > 1/2 iff p > θ, but for scores within rounding of θ."""
    logits = torch.randn(1, 50, 4, generator=torch.Generator().manual_seed(seed)) * 3
    scores = logits.softmax(dim=-1)
    votes = Threshold(theta).votes(scores, guard=1e-5)
    soft = Threshold(theta).soft(logits)
    assert ((soft > 0.5) == votes.cast)[~votes.close].all()
    assert ((soft >= 0) & (soft <= 1)).all()
    torch.testing.assert_close(TopOne().soft(logits), scores)


@pytest.mark.parametrize("theta", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_theta_lies_strictly_between_0_and_1(theta):
    """The message names theta."""
    with pytest.raises(InvalidInput, match="theta is"):
        Threshold(theta)


@pytest.mark.parametrize("guard", [-1e-9, 1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("voting", [Threshold, TopOne])
def test_the_guard_lies_between_0_and_1(voting, guard):
    """A negative or NaN guard would mark nothing close."""
    with pytest.raises(InvalidInput, match="guard is"):
        voting(guard=guard)


def test_parse():
    """Both rules, the default θ, and a message that shows what is known."""
    assert parse_voting("threshold:0.25", 1e-3) == Threshold(0.25, 1e-3)
    assert parse_voting(" Threshold ") == Threshold(0.3)
    assert parse_voting("top1") == TopOne()
    assert Threshold(0.3).with_guard(0.5) == Threshold(0.3, 0.5)
    for text in ("top1:3", "majority", "threshold:x", "threshold:2", ""):
        with pytest.raises(InvalidInput):
            parse_voting(text)


@pytest.mark.parametrize("name", ["cast", "close"])
def test_votes_are_true_or_false(name):
    """Three votes of each of four ablations, 9 to 3, were certified against a pixel that makes it 6 to 6. (The suite's
    type checks come first, users have none.)
    """
    counts = torch.tensor([[[0, 3], [0, 3], [0, 3], [3, 0]]])
    votes = Votes(counts > 0, counts > 3)
    object.__setattr__(votes, name, counts)
    with pytest.raises(InvalidInput, match=rf"{name} votes have dtype torch.int64; .* pass booleans"):
        votes.__post_init__()


BAD = (torch.nan, torch.inf)
NUMBERS = st.sampled_from([-torch.inf, -1.0, 0.0, 2.0, *BAD])


@given(st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=0, max_size=4))
def test_the_first_largest_is_named_or_refused(rows):
    """What Python's own comparison says, where the largest is finite; a row with NaN, +inf or -inf alone is refused."""
    values = torch.tensor(rows).reshape(len(rows), 3)
    if any(some != some or some == torch.inf for row in rows for some in row) or any(
        max(row) == -torch.inf for row in rows
    ):
        with pytest.raises(InvalidInput, match=r"NaN, or the largest of an image is infinite.*mend the model"):
            first_argmax(values)
    else:
        assert first_argmax(values).tolist() == [row.index(max(row)) for row in rows]
