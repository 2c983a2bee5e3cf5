"""PITFALLS 4, 5, 9, 10: both methods against every corruption of the votes that the attacker can reach."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustpatch.ablations.parse import parse_ablation
from robustpatch.certificates.exact import certify_votes, largest_certified
from robustpatch.certificates.margins import rival_margins
from robustpatch.threats.any_of import AnyOf
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Votes
from tests import oracles

GEOMETRIES = [  # ablation, patch, image
    ("columns:1", (1, 1), (2, 5)),
    ("columns:2", (1, 1), (1, 6)),
    ("columns:1", (2, 2), (2, 6)),
    ("columns:3/2", (1, 1), (1, 9)),
    ("rows:1", (2, 1), (6, 2)),
    ("rows:2", (1, 2), (5, 3)),
    ("blocks:1", (1, 1), (2, 3)),
    ("blocks:1x2", (2, 1), (2, 3)),
    ("columns:2/3", (1, 1), (1, 12)),
    ("columns:4", (1, 2), (1, 4)),
    ("2*grid-columns:2", (1, 1), (1, 7)),
    ("2*grid-columns:1", (1, 1), (2, 4)),
    ("2*grid-blocks:2", (1, 1), (3, 4)),
]


@st.composite
def elections(draw, geometries=GEOMETRIES, classes=(2, 5), close=False):
    """A geometry and random votes [1,N,K], with any number of classes in a vote, many ties, sometimes close votes."""
    text, patch, size = draw(st.sampled_from(geometries))
    k = draw(st.integers(*classes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    density = torch.tensor(draw(st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), min_size=k, max_size=k)))
    n = parse_ablation(text).count(*size)
    cast = torch.rand(1, n, k, generator=generator) < density
    near = torch.rand(1, n, k, generator=generator) < (draw(st.sampled_from([0.05, 0.3])) if close else 0.0)
    return text, patch, size, Votes(cast, near)


def certify(election, method="exact", count=1, patch=None):
    text, own, size, votes = election
    threat = PatchThreat(*(patch or own), count=count)
    return certify_votes(votes, parse_ablation(text), threat, size, method=method)


@given(elections())
@settings(max_examples=200)
def test_the_exact_certificate_is_the_truth(election):
    """certified ⇔ no corruption flips; the margin, of every placement, is the least lead over all corruptions."""
    text, patch, size, votes = election
    certificate, lists = certify(election), votes.cast[0].tolist()
    leads = [oracles.worst_lead(lists, touched) for touched in oracles.touched(text, patch, size)]
    assert int(certificate.prediction) == oracles.winner(votes.cast[0].sum(dim=0).tolist())
    assert certificate.placement_margin is not None
    assert certificate.placement_margin[0].tolist() == leads
    assert int(certificate.margin) == min(leads)
    assert bool(certificate.certified) == (min(leads) >= 0)


@given(elections(close=True))
@settings(max_examples=100)
def test_margins_by_rival_are_leads_towards_each(election):
    """For each placement and class j, what is left of the lead over j when the touched ablations all go over to j."""
    text, patch, size, votes = election
    ablation, threat = parse_ablation(text), PatchThreat(*patch)
    touched = ablation.touched(threat, *size)
    prediction = votes.cast.sum(dim=1).argmax(dim=1)
    c, classes = int(prediction), votes.cast.shape[2]
    margins = rival_margins(votes, prediction, touched)[0][touched.set_of_placement]
    sure, possible = (votes.cast & ~votes.close)[0].tolist(), (votes.cast | votes.close)[0].tolist()
    for row, some in zip(margins.tolist(), oracles.touched(text, patch, size), strict=True):
        for j in range(classes):
            if j != c:
                own = sum(v[c] for n, v in enumerate(sure) if n not in some)
                assert row[j] == own - sum(v[j] or n in some for n, v in enumerate(possible)) - (j < c)
    assert (margins[:, c] > 2**29).all()  # no rival of itself
    exact = certify_votes(votes, ablation, threat, size).placement_margin
    assert exact is not None
    assert torch.equal(margins.amin(dim=1), exact[0])


@given(elections())
@settings(max_examples=100)
def test_the_paper_margin_implies_the_exact_certificate(election):
    """Never above the exact margin, hence sound; its value is the paper's, with every rival looked at."""
    margin, exact = certify(election, "margin"), certify(election)
    assert int(margin.margin) <= int(exact.margin)
    assert bool(exact.certified) or not bool(margin.certified)
    assert margin.placement_margin is None
    text, patch, size, votes = election
    counts, affected = votes.cast[0].sum(dim=0).tolist(), max(map(len, oracles.touched(text, patch, size)))
    assert int(margin.margin) == oracles.lead(counts, oracles.winner(counts)) - 2 * affected


@given(elections(close=True))
@settings(max_examples=150)
def test_close_votes_count_against_the_certificate(election):
    """certified ⇔ no corruption flips under any turning-over of close votes besides, with or without a patch."""
    text, patch, size, votes = election
    lists, close = votes.cast[0].tolist(), votes.close[0].tolist()
    sets = oracles.touched(text, patch, size)
    leads = [oracles.worst_lead(lists, touched, close) for touched in sets]
    certificate = certify(election)
    assert certificate.placement_margin is not None
    assert certificate.placement_margin[0].tolist() == leads
    assert int(certificate.close) == int(votes.close.sum())
    assert int(certify(election, "margin").margin) <= min(leads)
    if bool(certificate.certified):
        assert oracles.worst_lead(lists, frozenset(), close) >= 0


@given(elections(geometries=GEOMETRIES[:7]), st.integers(2, 3))
def test_several_patches_against_every_union(election, count):
    """Bands: the margin is the least lead over all unions. Blocks: never above it. No placement map."""
    text, patch, size, votes = election
    certificate = certify(election, count=count)
    unions = oracles.unions(oracles.touched(text, patch, size), count)
    worst = min(oracles.worst_lead(votes.cast[0].tolist(), union) for union in unions)
    assert certificate.placement_margin is None
    if text.startswith("blocks"):
        assert int(certificate.margin) <= worst
    else:
        assert int(certificate.margin) == worst
    assert int(certify(election, "margin", count).margin) <= int(certificate.margin)


@given(elections(geometries=GEOMETRIES[:7], close=True))
def test_several_patches_with_close_votes_are_sound(election):
    """Turned-over close votes and a union of two placements together: never above the truth."""
    text, patch, size, votes = election
    lists, close = votes.cast[0].tolist(), votes.close[0].tolist()
    unions = oracles.unions(oracles.touched(text, patch, size), 2)
    assert int(certify(election, count=2).margin) <= min(oracles.worst_lead(lists, u, close) for u in unions)


@given(st.integers(0, 2**20))
def test_the_oracle_of_counts_is_the_oracle_of_subsets(seed):
    """The enumeration class by class reaches what casting every subset of votes in every touched ablation reaches."""
    generator = torch.Generator().manual_seed(seed)
    votes = (torch.rand(4, 3, generator=generator) < 0.5).tolist()
    assert set(oracles.corruptions(votes, frozenset({1, 3}))) == oracles.subset_corruptions(votes, frozenset({1, 3}))


@given(
    elections(
        geometries=[
            ("columns:1", (1, 1), (3, 6)),
            ("columns:1", (1, 1), (7, 12)),
            ("columns:2/3", (1, 1), (5, 10)),
            ("blocks:1", (1, 1), (2, 3)),
            ("blocks:1", (1, 1), (4, 5)),
            ("rows:2", (1, 1), (6, 4)),
        ],
        close=True,
    ),
    st.sampled_from(["exact", "margin"]),
)
@settings(max_examples=40)
def test_largest_certified_is_the_last_size_that_certifies(election, method):
    """At every side: certified up to the one returned, and not beyond (monotone); in company as alone."""
    text, _, size, votes = election
    ablation = parse_ablation(text)
    pair = Votes(torch.cat([votes.cast, votes.cast.flip(1)]), torch.cat([votes.close, votes.close.flip(1)]))
    both = largest_certified(pair, ablation, size, method)
    for largest, one in zip(both.tolist(), (votes, Votes(votes.cast.flip(1), votes.close.flip(1))), strict=True):
        alone = (text, None, size, one)
        certified = [bool(certify(alone, method, patch=(m, m)).certified) for m in range(1, min(size) + 1)]
        assert certified == [m <= largest for m in range(1, min(size) + 1)]
        assert largest_certified(one, ablation, size, method).tolist() == [largest]


@pytest.mark.parametrize("text", ["columns:1", "blocks:1", "rows:2"])
def test_largest_certified_of_many_images_at_once(text):
    """Side by side equal to `certify_votes`, also where the exact margin is 0 at a side that the paper's refuses."""
    size, ablation = (7, 8), parse_ablation(text)
    generator = torch.Generator().manual_seed(0)
    density = torch.rand(400, 1, 3, generator=generator)
    cast = torch.rand(400, ablation.count(*size), 3, generator=generator) < density
    votes = Votes(cast, torch.zeros_like(cast))
    reached = {}
    for method in ("exact", "margin"):
        each = [certify_votes(votes, ablation, PatchThreat(m, m), size, method=method) for m in range(1, 8)]
        reached[method] = largest_certified(votes, ablation, size, method)
        assert torch.equal(reached[method], torch.stack([one.certified for one in each]).long().sum(dim=0))
        if method == "exact":
            margins = torch.stack([one.margin for one in each])
    beyond = reached["exact"] > reached["margin"]
    last = margins.gather(0, (reached["exact"] - 1).clamp(min=0)[None])[0]
    assert (last[beyond] == 0).any()


@given(elections(geometries=GEOMETRIES[:5]))
@settings(max_examples=25)
def test_any_of_has_the_least_margin(election):
    """A 1×2 or a 2×1 patch: the minimum of both, and the maps one after the other."""
    text, _, (height, width), votes = election
    height, width = max(2, height), max(2, width)
    n = parse_ablation(text).count(height, width)
    again = torch.arange(n) % votes.cast.shape[1]
    votes = Votes(votes.cast[:, again], votes.close[:, again])
    alone = [certify((text, patch, (height, width), votes)) for patch in ((1, 2), (2, 1))]
    for method in ("exact", "margin"):
        either = AnyOf([PatchThreat(1, 2), PatchThreat(2, 1)])
        both = certify_votes(votes, parse_ablation(text), either, (height, width), method=method)
        one = [certify((text, patch, (height, width), votes), method) for patch in ((1, 2), (2, 1))]
        assert torch.equal(both.margin, torch.minimum(one[0].margin, one[1].margin))
        assert torch.equal(both.certified, one[0].certified & one[1].certified)
        if method == "exact":
            maps = [c.placement_margin for c in alone if c.placement_margin is not None]
            assert both.placement_margin is not None
            assert torch.equal(both.placement_margin, torch.cat(maps, dim=1))
