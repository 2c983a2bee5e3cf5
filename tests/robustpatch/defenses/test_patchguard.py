"""Robust masking: the certificate against every corruption of the touched contributions, and the classifier itself."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate.audit import audit
from robustpatch.ablations.kinds import Columns
from robustpatch.ablations.parse import parse_ablation
from robustpatch.certificates.exact import certify_votes
from robustpatch.certificates.robust_masking import Masking, incidence
from robustpatch.checkpoints import load_checkpoint
from robustpatch.defenses import parse_defense
from robustpatch.defenses.patchguard import MaskedClassifier, PatchGuard
from robustpatch.errors import InvalidInput
from robustpatch.networks import BlockNet
from robustpatch.threats.any_of import AnyOf
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.training.config import TrainingConfig
from robustpatch.training.loop import train
from robustpatch.voting.rules import TopOne
from robustpatch.voting.scored import ClippedLogits, SummedScores
from robustpatch.voting.votes import UNITS, Scored, Votes, first_argmax
from tests import helpers, oracles, toys
from tests.attacks.toys import Lookup, smoothed

GEOMETRIES = [  # ablation, window of the detector, patch, image
    ("columns:1", (1, 1), (1, 1), (1, 4)),
    ("columns:2", (1, 1), (1, 1), (1, 5)),  # around the border
    ("columns:1", (1, 2), (1, 1), (1, 4)),
    ("columns:2/3", (1, 1), (1, 1), (1, 7)),
    ("rows:1", (2, 1), (2, 1), (5, 1)),
    ("blocks:1", (1, 2), (1, 1), (2, 2)),
    ("blocks:1", (2, 2), (1, 2), (2, 3)),
]
ABLATIONS = {text: parse_ablation(text) for text, *_ in GEOMETRIES}
THRESHOLDS = [Fraction(0), Fraction(1, 4), Fraction(1, 2), Fraction(9, 10), Fraction(1)]
LEVELS = [0, 1, 2, UNITS // 3, UNITS // 2, UNITS - 1, UNITS]


@st.composite
def masked(draw, boolean=False):
    """A geometry, a threshold and contributions [1,N,K] with many ties, and what decides random contents."""
    text, window, patch, size = draw(st.sampled_from(GEOMETRIES))
    n, k = ABLATIONS[text].count(*size), draw(st.integers(2, 3))
    values = st.booleans() if boolean else st.sampled_from(LEVELS)
    cast = torch.tensor([draw(st.lists(st.lists(values, min_size=k, max_size=k), min_size=n, max_size=n))])
    votes = Votes(cast, torch.zeros_like(cast)) if boolean else Scored(cast.int(), draw(st.sampled_from([0, 2])))
    return text, window, patch, size, draw(st.sampled_from(THRESHOLDS)), votes, draw(st.integers(0, 2**20))


def left_of(column: list[int], windows: list[frozenset[int]], threshold: Fraction) -> int:
    """What robust masking leaves of one class, by its definition."""
    loudest = max(sum(column[n] for n in window) for window in windows)
    return sum(column) - (loudest if Fraction(loudest) > threshold * sum(column) else 0)


def extremes(column: list[int], touched: frozenset[int], slack: int, unit: int, windows, threshold, generator) -> list:
    """The least and the most that some contents of the touched set leave of a class, with rounding outside of it.

    The contents tried: nothing, everything, every level that meets the threshold in some window, and random ones.
    """
    found = []
    for moved in (-slack, 0, slack):
        base = [min(unit, max(0, value + moved)) for value in column]
        outside = sum(value for n, value in enumerate(base) if n not in touched)
        tried = {0, 1, unit // 2, unit}
        for window in windows:
            inside = sum(value for n, value in enumerate(base) if n in window and n not in touched)
            if threshold < 1:  # the content that just does, and just does not, get this window masked
                just = int((threshold * outside - inside) / (1 - threshold) / max(1, len(touched & window)))
                tried |= {min(unit, max(0, just + by)) for by in (-1, 0, 1)}
        contents = [
            dict(zip(sorted(touched), some, strict=True)) for some in product(sorted(tried), repeat=len(touched))
        ]
        if len(contents) > 400:
            order = torch.randperm(len(contents), generator=generator)[:400].tolist()
            contents = [contents[0], contents[-1], *(contents[i] for i in order)]
        for content in contents:
            found.append(left_of([content.get(n, value) for n, value in enumerate(base)], windows, threshold))
    return [min(found), max(found)]


@given(masked())
@settings(max_examples=80, deadline=None)
def test_no_content_within_reach_beats_the_margin(case):
    """For every set that the patch touches: at least the least of c less the most of any rival, over all contents. At
    threshold 0, and windows all alike, no less either: the bound is attained.
    """
    check(case)


@given(masked(boolean=True))
@settings(max_examples=80, deadline=None)
def test_no_votes_within_reach_beat_the_margin(case):
    check(case)


def check(case) -> None:
    text, window, patch, size, threshold, votes, seed = case
    generator = torch.Generator().manual_seed(seed)
    masking = Masking(incidence(ABLATIONS[text], PatchThreat(*window), size), threshold)
    sets = incidence(ABLATIONS[text], PatchThreat(*patch), size)
    windows = sorted(set(oracles.touched(text, window, size)), key=sorted)
    cast, unit = votes.cast[0].long(), votes.unit
    columns = [cast[:, k].tolist() for k in range(cast.shape[1])]
    left = [left_of(column, windows, threshold) for column in columns]
    heard, found = masking.remainder(votes.cast)
    assert found[0].tolist() == left
    assert (votes.cast.long() * heard).sum(dim=1)[0].tolist() == left
    c = oracles.winner(left)
    margins = masking.margins(votes, torch.tensor([c]), sets)[0]
    assert masking.covers(sets)
    slack = votes.slack if isinstance(votes, Scored) else 0
    for touched, margin in zip(sets.tolist(), margins.tolist(), strict=True):
        own_set = frozenset(n for n, member in enumerate(touched) if member)
        reach = [extremes(column, own_set, slack, unit, windows, threshold, generator) for column in columns]
        worst = min(reach[c][0] - reach[j][1] - (j < c) for j in range(len(columns)) if j != c)
        assert margin <= worst
        if threshold == 0 and window == patch and len({len(some) for some in windows}) == 1:
            assert margin == worst


@given(masked())
@settings(max_examples=80, deadline=None)
def test_what_stands_against_a_patch_stands_against_a_smaller_one(case):
    """Each patch that the window covers, and each within it; by the masking of that window."""
    text, window, _, size, threshold, votes, _ = case
    masking = Masking(incidence(ABLATIONS[text], PatchThreat(*window), size), threshold)
    prediction = first_argmax(masking.remainder(votes.cast)[1])
    patches = list(product(range(1, window[0] + 1), range(1, window[1] + 1)))
    margin = {}
    for patch in patches:
        sets = incidence(ABLATIONS[text], PatchThreat(*patch), size)
        margin[patch] = int(masking.margins(votes, prediction, sets).amin())
    for large, small in product(patches, repeat=2):
        if small[0] <= large[0] and small[1] <= large[1]:
            assert margin[small] >= margin[large]


def test_a_smaller_patch_is_masked_by_the_same_window():
    """Two classes in turn: every window holds a column of each, so touching one masks the other too."""
    cast = torch.tensor([[[True, False], [False, True]] * 3 + [[True, False]]])
    votes = Votes(cast, torch.zeros_like(cast))
    columns, size = parse_ablation("columns:1"), (1, 7)
    masking = Masking(incidence(columns, PatchThreat(1, 2), size), Fraction(0))
    prediction = first_argmax(masking.remainder(cast)[1])
    margins = [
        masking.margins(votes, prediction, incidence(columns, PatchThreat(1, width), size)).amin() for width in (1, 2)
    ]
    assert [int(margin) for margin in margins] == [0, 0]


@given(masked(boolean=True))
@settings(max_examples=30, deadline=None)
def test_never_masking_is_smoothing_and_its_exact_certificate(case):
    text, window, patch, size, _, votes, _ = case
    masking = Masking(incidence(ABLATIONS[text], PatchThreat(*window), size), Fraction(1))
    sets = incidence(ABLATIONS[text], PatchThreat(*patch), size)
    exact = certify_votes(votes, ABLATIONS[text], PatchThreat(*patch), size)
    prediction = first_argmax(masking.remainder(votes.cast)[1])
    assert torch.equal(prediction, exact.prediction)
    assert torch.equal(masking.margins(votes, prediction, sets).amin(dim=1), exact.margin.long())  # type: ignore[union-attr]


def test_windows_around_the_border_are_masked():
    """All that speaks for class 0 lies in the last band and the first: one window of width 2, at every threshold."""
    ablation, size = parse_ablation("columns:2"), (1, 8)
    cast = torch.zeros(1, 8, 2, dtype=torch.bool)
    cast[0, [7, 0], 0] = True
    cast[0, 3, 1] = True
    for threshold in THRESHOLDS[:4]:
        _, left = Masking(incidence(ablation, PatchThreat(1, 1), size), threshold).remainder(cast)
        assert left.tolist() == [[0, 0]]


def model(defense: str = "patchguard:window=2x2", voting=None, ablation=None, base=None) -> MaskedClassifier:
    inner = toys.smoothed(base or toys.strip(), ablation or toys.Columns(2), voting=voting or SummedScores())
    guard = parse_defense(defense)
    assert isinstance(guard, PatchGuard)
    return guard.wrap(inner, num_classes=toys.CLASSES).eval()


@pytest.mark.parametrize("voting", ["own", "threshold:0.3", "relu:8.0", "tanh:0.5:0.0"])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_predict_certify_and_forward_agree(voting, threshold):
    made = model(f"patchguard:window=2x2,threshold={threshold},voting={voting}")
    x = toys.images(8).requires_grad_()
    certificate = made.certify(x.detach(), PatchThreat(2, 2))
    out = made(x)
    assert torch.equal(made.predict(x.detach()), certificate.prediction)
    assert torch.equal(first_argmax(out), certificate.prediction)
    assert torch.equal(made(x.detach()), out)
    assert certificate.placement_margin is not None
    assert certificate.margin is not None
    assert certificate.placement_margin.shape == (8, 5 * 7)
    assert torch.equal(certificate.placement_margin.amin(dim=1), certificate.margin)
    (gradient,) = torch.autograd.grad(out[:, 0].sum(), x)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("threshold", [0.0, 0.5])
@pytest.mark.parametrize("voting", [TopOne(1e-6), SummedScores(1e-6)], ids=str)
@pytest.mark.parametrize("ablation", [Columns(1), Columns(2)], ids=str)
def test_every_content_of_every_place(ablation, voting, threshold):
    """End to end, all black and white images of 1x8 pixels, each with every pixel black and white: what is certified
    stays, and others do not. The classifier is an arbitrary function of what each ablation shows.
    """
    x = torch.tensor(list(product((0.0, 1.0), repeat=8))).view(-1, 1, 1, 8)
    certified = changed = 0
    for seed in range(4):
        inner = smoothed(Lookup(seed, 2 * 8, 3, 1.0), ablation, 3, voting)
        made = PatchGuard(window="1x1", threshold=threshold).wrap(inner, num_classes=3).eval()
        found = made.certify(x, PatchThreat(1, 1))
        assert torch.equal(found.prediction, made.predict(x))
        number = {tuple(image): i for i, image in enumerate(x.flatten(1).tolist())}
        for i, image in enumerate(x.flatten(1).tolist()):
            attacked = [number[(*image[:k], 1 - image[k], *image[k + 1 :])] for k in range(8)]
            moved = bool((found.prediction[attacked] != found.prediction[i]).any())
            assert not (moved and found.certified[i])
            certified, changed = certified + int(found.certified[i]), changed + moved
    assert certified > 0
    assert changed > 0


def test_blocks_with_clipped_logits_are_a_bagnet():
    """A network of small receptive fields, its local logits clipped at 0 and masked; either of two patches."""
    blocks = toys.Blocks(3, 3)
    made = model(voting=ClippedLogits(8.0), ablation=blocks, base=toys.one_pass(blocks))
    assert isinstance(made.network.base, BlockNet)
    x = toys.images(4)
    both = made.certify(x, AnyOf([PatchThreat(1, 2), PatchThreat(2, 1)]))
    each = [made.certify(x, PatchThreat(*patch)).margin for patch in ((1, 2), (2, 1))]
    margins = [margin for margin in (both.margin, *each) if margin is not None]
    assert torch.equal(margins[0], torch.minimum(margins[1], margins[2]))


def test_a_patch_that_no_window_covers_is_refused():
    made, x = model(), toys.images(2)
    with pytest.raises(InvalidInput, match="window=2x3"):
        made.certify(x, PatchThreat(2, 3))
    assert made.certify(x, PatchThreat(6, 2)).certified.shape == (2,)  # of columns no window sees the height
    with pytest.raises(InvalidInput, match="masks one window"):
        made.certify(x, PatchThreat(1, 1, 2))
    with pytest.raises(InvalidInput, match="window is 2\\*2x2"):
        model("patchguard:window=2*2x2").predict(x)
    with pytest.raises(InvalidInput, match="training mode"):
        made.train().certify(x, PatchThreat(2, 2))
    with pytest.raises(InvalidInput, match=r"pass \[batch, channels, height, width\]"):
        made.eval().predict(x[..., :0])


def test_wrong_settings_are_refused():
    with pytest.raises(InvalidInput, match=r"threshold is 1\.5"):
        parse_defense("patchguard:threshold=1.5")
    with pytest.raises(InvalidInput, match="voting is 'loud'"):
        parse_defense("patchguard:voting=loud")
    with pytest.raises(InvalidInput, match="name an ablation"):
        PatchGuard().wrap(toys.linear(channels=1), num_classes=toys.CLASSES)
    with pytest.raises(InvalidInput, match="more than masking can list"):
        incidence(parse_ablation("blocks:20"), PatchThreat(32, 32), (224, 224))


def test_a_base_that_sees_more_than_its_band_is_refused():
    made = model(base=toys.strip(kind=toys.WideStrip))
    with pytest.raises(InvalidInput, match="sees more than its band"):
        made.certify(toys.images(), PatchThreat(2, 2))


def test_the_classifier_inside_is_not_changed():
    inner = toys.smoothed(toys.strip(), toys.Columns(2))
    made = PatchGuard(window="2x2", voting="scores").wrap(inner, num_classes=toys.CLASSES)
    assert str(inner.voting) == "threshold:0.3"
    assert str(made.network.voting) == "scores"
    assert made.network.base is inner.base
    assert not made.network.training


def test_it_is_trained_as_the_smoothed_classifier_inside(tmp_path):
    """The weights after two steps are those of the same settings without the defense; the checkpoint is masked."""
    images = helpers.digits(40)
    x, _ = images.batch(range(40))
    config = {
        "network": {"name": "strip", "widths": [4], "hidden": 4},
        "epochs": 1,
        "batch_size": 20,
        "bfloat16": False,
    }
    config |= {"certificate": 1.0, "voting": "sigmoid:0.5", "local": 0.5}
    plain = train(TrainingConfig(**config), images, images, tmp_path / "plain")
    guarded = train(
        TrainingConfig(**config, ablation="columns:2", defense="patchguard"), images, images, tmp_path / "guarded"
    )
    weights = [list(one.parameters()) for one in (plain, guarded)]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    loaded = load_checkpoint(tmp_path / "guarded" / "checkpoint.safetensors").model
    assert isinstance(loaded, MaskedClassifier)
    assert isinstance(guarded, MaskedClassifier)
    assert torch.equal(loaded.predict(x), guarded.predict(x))
    assert str(loaded.defense) == "patchguard"


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_the_audit_replaces_its_base_and_finds_nothing(threshold):
    inner = toys.smoothed(toys.linear(channels=2, size=(3, 12)), toys.Columns(2))
    made = PatchGuard(window="1x1", threshold=threshold).wrap(inner, num_classes=toys.CLASSES).eval()
    found = audit(
        factory=made.with_base, threat=PatchThreat(1, 1), image_shape=(1, 3, 12), num_classes=toys.CLASSES, budget=4
    )
    assert not found.findings
    assert found.certified
