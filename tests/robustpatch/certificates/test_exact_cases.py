"""Certificates in cases worked out by hand: ties, third classes, wide counters, rivals without votes, refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustpatch.ablations.kinds import Blocks, Columns, Rows
from robustpatch.certificates import margins as module
from robustpatch.certificates.exact import certify_votes, largest_certified
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Votes
from tests import oracles


def counted(counts: list[int], n: int) -> Votes:
    """Votes of n ablations with these counts, spread from the first on."""
    cast = torch.arange(n)[:, None] < torch.tensor(counts)
    return Votes(cast[None], torch.zeros_like(cast)[None])


@pytest.mark.parametrize("method", ["exact", "margin"])
def test_a_tie_is_lost_to_a_lower_index(method):
    """PITFALLS 4: [10,20,10,0] and Δ = 5 is not certified, since [15,15,10,0] elects class 0; with Δ = 4 it is."""
    votes = counted([10, 20, 10, 0], 40)
    assert Columns(1).affected(PatchThreat(1, 5), 1, 40) == 5
    for size, certified in ((5, False), (4, True)):
        certificate = certify_votes(votes, Columns(1), PatchThreat(1, size), (1, 40), method=method)
        assert int(certificate.prediction) == 1
        assert bool(certificate.certified) is certified


def test_the_margin_looks_at_every_tied_rival():
    """PITFALLS 4: of rivals with 10 votes each, the lower index wins ties and is the one that counts."""
    for counts, margin in (([10, 20, 10, 0], -1), ([0, 20, 10, 10], 0), ([20, 10, 10, 10], 0), ([0, 10, 10, 20], -1)):
        certificate = certify_votes(counted(counts, 40), Columns(1), PatchThreat(1, 5), (1, 40), method="margin")
        assert int(certificate.margin) == margin


def test_a_third_class_can_be_lifted():
    """PITFALLS 5: the runner-up's votes all lie where the patch is; only the third class gains there."""
    cast = torch.zeros(1, 12, 3, dtype=torch.bool)
    cast[0, :9, 0] = True  # class 0: ablations 0-8
    cast[0, 0:6, 1] = True  # class 1, the runner-up: 6 votes, in ablations 0-5
    cast[0, 7:12, 2] = True  # class 2: 5 votes, mostly elsewhere
    votes = Votes(cast, torch.zeros_like(cast))
    certificate = certify_votes(votes, Columns(1), PatchThreat(1, 3), (1, 12))
    assert certificate.placement_margin is not None
    assert int(certificate.placement_margin[0, 0]) == 9 - 3 - (5 + 3)
    assert 9 - 3 - (6 - 3 + 3) >= 0  # against the runner-up alone, placement 0 would be certified
    assert not bool(certificate.certified)


def test_three_hundred_votes_do_not_wrap():
    """PITFALLS 16 and 24: 300 > 255 (uint8), 257 > 256 (bfloat16), 2049 > 2048 (float16), 256·256 (int16)."""
    for n, counts in ((300, [256 + 30, 40]), (300, [256, 257]), (2100, [2048, 2049]), (70_000, [65_536, 65_537])):
        votes = counted(counts, n)
        certificate = certify_votes(votes, Columns(1), PatchThreat(1, 1), (1, n))
        assert int(certificate.prediction) == oracles.winner(counts)
        c = int(certificate.prediction)
        margin = certify_votes(votes, Columns(1), PatchThreat(1, 1), (1, n), method="margin").margin
        assert int(margin) == oracles.lead(counts, c) - 2


@pytest.mark.parametrize("method", ["exact", "margin"])
@pytest.mark.parametrize(
    ("ablation", "patch", "size"),
    [
        (Columns(4), (1, 3), (2, 6)),
        (Rows(3), (3, 1), (5, 2)),
        (Blocks(2), (3, 3), (4, 4)),
        (Columns(2), (2, 6), (2, 6)),
    ],
)
def test_an_attacker_who_touches_everything_is_never_certified_against(method, ablation, patch, size):
    """PITFALLS 9: affected = N is a valid question with the answer no, even for unanimous votes."""
    n = ablation.count(*size)
    assert ablation.affected(PatchThreat(*patch), *size) == n
    certificate = certify_votes(counted([n, 0, 0], n), ablation, PatchThreat(*patch), size, method=method)
    assert not bool(certificate.certified)


@given(st.integers(0, 2**20), st.integers(4, 8), st.integers(1, 2))
def test_classes_without_votes_are_rivals_too(seed, k, count):
    """Most classes get no votes, sometimes all, sometimes the prediction itself: batches equal a recount."""
    generator = torch.Generator().manual_seed(seed)
    cast = torch.rand(5, 6, k, generator=generator) < 0.5
    cast &= torch.rand(5, 1, k, generator=generator) < 0.25
    votes = Votes(cast, torch.zeros_like(cast))
    certificate = certify_votes(votes, Columns(1), PatchThreat(1, 1, count), (1, 6))
    unions = oracles.unions(oracles.touched("columns:1", (1, 1), (1, 6)), count)
    for i in range(5):
        lists = cast[i].tolist()
        c = oracles.winner(cast[i].sum(dim=0).tolist())
        truth = []
        for union in unions:  # the worst corruption for each rival, recounted
            for j in set(range(k)) - {c}:
                now = [list(vote) for vote in lists]
                for n in union:
                    now[n][c], now[n][j] = False, True
                truth.append(oracles.lead([sum(vote[x] for vote in now) for x in range(k)], c))
        assert int(certificate.margin[i]) == min(truth)


@pytest.mark.parametrize("count", [1, 2])
def test_chunks_change_nothing(monkeypatch, count):
    """Images and rivals one at a time or all at once: equal certificates."""
    generator = torch.Generator().manual_seed(0)
    votes = Votes(torch.rand(7, 6, 5, generator=generator) < 0.6, torch.rand(7, 6, 5, generator=generator) < 0.02)
    whole = certify_votes(votes, Columns(2), PatchThreat(1, 1, count), (1, 6))
    for cells in (1, 50, 150):
        monkeypatch.setattr(module, "_CACHED", cells)
        part = certify_votes(votes, Columns(2), PatchThreat(1, 1, count), (1, 6))
        assert torch.equal(part.margin, whole.margin)
        if count == 1:
            assert part.placement_margin is not None
            assert whole.placement_margin is not None
            assert torch.equal(part.placement_margin, whole.placement_margin)


def test_an_empty_batch_has_an_empty_certificate():
    """No images, no claims, no error."""
    none = torch.zeros(0, 6, 3, dtype=torch.bool)
    for method in ("exact", "margin"):
        certificate = certify_votes(Votes(none, none), Columns(2), PatchThreat(1, 1), (1, 6), method=method)
        assert certificate.certified.shape == certificate.margin.shape == (0,)
    assert largest_certified(Votes(none, none), Columns(2), (1, 6)).shape == (0,)


def test_what_cannot_be_certified_is_refused():
    """Another number of ablations, one class, a patch that does not fit: with the shapes in the message."""
    votes = counted([3, 1], 6)
    for bad, ablation, patch, size in (
        (votes, Columns(2), (1, 1), (1, 7)),
        (counted([3], 6), Columns(2), (1, 1), (1, 6)),
        (votes, Columns(2), (1, 7), (1, 6)),
        (votes, Columns(2), (2, 1), (1, 6)),
        (votes, Columns(7), (1, 1), (1, 6)),
    ):
        for method in ("exact", "margin"):
            with pytest.raises(InvalidInput):
                certify_votes(bad, ablation, PatchThreat(*patch), size, method=method)
            if patch == (1, 1):
                with pytest.raises(InvalidInput, match=r"needs \[B, \d, K\] twice|take at most 6"):
                    largest_certified(bad, ablation, size, method)
