"""PatchGuard's alarm: whatever the touched ablations say, the certified class is answered, or there is an alert."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from robustpatch.ablations.kinds import Blocks, Columns
from robustpatch.certificates.robust_masking import Masking, incidence
from robustpatch.defenses import parse_defense
from robustpatch.defenses.patchguard_alerts import AlarmedClassifier, PatchGuardAlerts
from robustpatch.errors import InvalidInput
from robustpatch.threats import parse_threat
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Threshold, TopOne
from robustpatch.voting.scored import SummedScores
from robustpatch.voting.votes import Scored, Votes
from tests import oracles, toys
from tests.attacks.toys import Lookup, images, smoothed
from tests.robustpatch.defenses.test_minority_reports import PIXELS, SIZE, under_every_content, unnoticed
from tests.robustpatch.defenses.test_patchguard import ABLATIONS, masked


def answer_of(columns: list[list[int]], windows: list[frozenset[int]], threshold: Fraction) -> int:
    """By the definition, in fractions: the class with the largest sum; -1 where a window holds too much of it."""
    sums = [sum(column) for column in columns]
    answer = oracles.winner(sums)
    loudest = max(sum(columns[answer][n] for n in window) for window in windows)
    return -1 if Fraction(loudest) > threshold * sums[answer] else answer


def levels_of(outside: list[int], touched: int, unit: int, threshold: Fraction) -> list[int]:
    """Contents of an ablation: nothing, everything, and what just fails to raise the alarm, where units are many."""
    if unit == 1 or threshold == 1:
        return [0, unit]
    just = [int(threshold * some / (1 - threshold) / touched) for some in outside]
    return sorted({0, unit, *(min(unit, value + by) for value in just for by in (0, 1))})


@pytest.mark.parametrize("boolean", [True, False], ids=["votes", "scores"])
def test_no_content_within_reach_is_answered_unnoticed(boolean):
    """For every set that the patch touches, contents of each class apart, and rounding outside of it."""
    safe = []

    @given(masked(boolean=boolean))
    @settings(max_examples=60, deadline=None)
    def check(case) -> None:
        text, window, patch, size, threshold, votes, _ = case
        masking = Masking(incidence(ABLATIONS[text], PatchThreat(*window), size), threshold)
        sets = incidence(ABLATIONS[text], PatchThreat(*patch), size)
        windows = sorted(set(oracles.touched(text, window, size)), key=sorted)
        columns = [votes.cast[0, :, k].long().tolist() for k in range(votes.cast.shape[2])]
        answer = answer_of(columns, windows, threshold)
        assert int(masking.answer_or_alert(votes.cast)) == answer
        if answer < 0:
            return
        margins = masking.unnoticed_margins(votes, torch.tensor([answer]), sets)[0]
        slack = votes.slack if isinstance(votes, Scored) else 0
        for touched, margin in zip(sets.tolist(), margins.amin(dim=1).tolist(), strict=True):
            own = [n for n, member in enumerate(touched) if member]
            safe.append(margin >= 0)
            if margin < 0 or not own:
                continue
            outside = [sum(value for n, value in enumerate(column) if n not in own) for column in columns]
            levels = levels_of(outside, len(own), votes.unit, threshold)
            for said in product(levels, repeat=2 * len(own)):  # of the certified class, and of all rivals alike
                for moved in {(-slack, slack), (slack, -slack), (0, 0)}:
                    changed = [
                        [min(votes.unit, max(0, value + moved[k != answer])) for value in column]
                        for k, column in enumerate(columns)
                    ]
                    for place, n in enumerate(own):
                        for k, column in enumerate(changed):
                            column[n] = said[place + len(own) * (k != answer)]
                    assert answer_of(changed, windows, threshold) in (-1, answer)

    check()
    assert any(safe)
    assert not all(safe)


def alarmed(seed: int, voting=None, ablation=None, threshold: float = 0.5) -> AlarmedClassifier:
    """Around an arbitrary function of what each ablation shows of the binarised image."""
    network = smoothed(Lookup(seed, 2 * PIXELS, 3, 4.0), ablation or Columns(1), 3, voting or TopOne(1e-6))
    return PatchGuardAlerts(window="1x1", threshold=threshold).wrap(network, num_classes=3).eval()


@pytest.mark.parametrize("voting", [TopOne(1e-6), Threshold(0.35, 1e-6), SummedScores(1e-6)], ids=str)
@pytest.mark.parametrize("ablation", [Columns(1), Blocks(2, 2)], ids=str)
def test_every_content_of_every_place(voting, ablation):
    """All patches of one pixel, black and white: kept or alerted where certified; both occur, and others are won."""
    model, x, threat = alarmed(2, voting, ablation), images(60, SIZE, seed=3), parse_threat("1x1", SIZE)
    found = model.certify(x, threat)
    assert found.outcome == "recovers or alerts"
    assert torch.equal(found.prediction, model.predict(x))
    assert not (found.certified & (found.prediction < 0)).any()
    answered = under_every_content(model, x, threat)
    assert not (unnoticed(answered, found.prediction) & found.certified).any()
    assert found.certified.any()


def test_what_is_certified_recovers_and_alerts():
    """Some patches on certified images are alerted, others change nothing; others are won."""
    model, x, threat = (
        alarmed(2, ablation=Columns(2), threshold=0.8),
        images(60, SIZE, seed=3),
        parse_threat("1x1", SIZE),
    )
    found, answered = model.certify(x, threat), under_every_content(model, x, threat)
    certified, open_ = found.certified, ~found.certified & (found.prediction >= 0)
    assert (answered[:, certified] == found.prediction[certified]).any()
    assert (answered[:, certified] < 0).any()
    assert unnoticed(answered, found.prediction)[:, open_].any()


def test_never_alerting_is_smoothing_and_its_certificate():
    model, x, threat = alarmed(2, threshold=1.0), images(40, SIZE), parse_threat("1x1", SIZE)
    ours, plain = model.certify(x, threat), model.network.certify(x, threat)
    assert torch.equal(ours.certified, plain.certified)
    assert torch.equal(ours.prediction, plain.prediction)


def test_a_share_exactly_reached_is_no_alert():
    """Two of four votes lie in the loudest window: an alert below one half."""
    cast = torch.zeros(1, 8, 2, dtype=torch.bool)
    cast[0, [0, 1, 4, 6], 1] = True
    windows = incidence(Columns(1), PatchThreat(1, 2), (1, 8))
    assert [int(Masking(windows, t).answer_or_alert(cast)) for t in (Fraction(1, 2), Fraction(49, 100))] == [1, -1]


def test_ablations_without_a_score():
    """They say nothing; where none has a score there is an alert."""
    model, x = alarmed(2), images(3, SIZE)

    def silent(found: Any) -> Tensor:
        return torch.full_like(found, torch.nan)

    model.network.base.register_forward_hook(lambda _, given, found: silent(found))
    assert model.predict(x).tolist() == [-1] * 3


def test_what_is_refused():
    assert str(parse_defense("patchguard-alerts:window=1x2,threshold=0.3")) == (
        "patchguard-alerts:window=1x2,threshold=0.3"
    )
    x = images(2, SIZE)
    with pytest.raises(InvalidInput, match="patchguard-alerts:window=2x2, or certify smaller"):
        alarmed(2).certify(x, parse_threat("2x2", SIZE))
    with pytest.raises(InvalidInput, match="PatchGuard masks what ablations say"):
        parse_defense("patchguard-alerts").wrap(toys.linear(), num_classes=3)


def test_the_type_of_votes_is_no_matter():
    """Units add up as votes do."""
    cast = torch.rand(5, 6, 3, generator=torch.Generator().manual_seed(0)) > 0.5
    masking, sets = (incidence(Columns(1), PatchThreat(1, 1), (1, 6)) for _ in range(2))
    masking = Masking(masking, Fraction(1, 3))
    votes, units = Votes(cast, torch.zeros_like(cast)), Scored(cast.int() * Scored.unit, 0)
    answer = masking.answer_or_alert(cast).clamp(min=0)
    assert torch.equal(masking.answer_or_alert(units.cast).clamp(min=0), answer)
    ours, theirs = (masking.unnoticed_margins(some, answer, sets) >= 0 for some in (votes, units))
    assert not (theirs & ~ours).any()
