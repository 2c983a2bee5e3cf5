"""The examiner's own proofs: what counts as unsound is, and what counts as sound was searched for a counterexample."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from robustpatch.threats.rectangle import PatchThreat
from tests.evaluate.acceptance.cases import SOUND, UNSOUND
from tests.evaluate.acceptance.search import Told, counterexample, holds_up
from tests.evaluate.acceptance.sound import ibp


@pytest.mark.parametrize("case", [case for case in UNSOUND if case.kind != "g"], ids=str)
def test_unsound(case):
    """A base, an image and a patch within the threat overturn what was certified; and do so again."""
    found = counterexample(case.make, case.place)
    assert found is not None
    assert holds_up(found, case.make, case.place)


@pytest.mark.parametrize("case", [case for case in UNSOUND if case.kind == "g"], ids=str)
def test_unsound_by_chance(case):
    """One base, one image, no patch: certified, and predicted otherwise in another call."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        said, x = {}, torch.from_numpy(rng.integers(9, 56, (1, *case.place.shape)) / 64).float()
        share = rng.random()
        base = Told(said, lambda share=share: 8 * np.eye(2)[int(rng.random() < share)] - 4)
        certifier = case.make(base, 2, case.place.shape)
        claims = [certifier.certify(x, case.place.threat) for _ in range(20)]
        certified = {int(one.prediction[0]) for one in claims if bool(one.certified[0])}
        predicted = {int(certifier.predict(x)[0]) for _ in range(20)}
        if certified and len(certified | predicted) > 1:
            return
    raise AssertionError("never certified and contradicted")


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in SOUND if case.make is not None], ids=str)
def test_sound(case):
    """No random base does it in as many rounds as find the unsound ones many times over, and some are certified."""
    assert counterexample(case.make, case.place) is None
    certified = 0
    rng = np.random.default_rng(1)
    for _ in range(20):
        x = torch.from_numpy(rng.integers(9, 56, (1, *case.place.shape)) / 64).float()
        base = Told({}, lambda: np.array([4.0, -4.0, -4.0]))
        certified += int(case.make(base, 3, case.place.shape).certify(x, case.place.threat).certified[0])
    assert certified > 0


TINY = {
    "exact columns": ((1, 1, 5), PatchThreat(1, 1)),
    "ties to the higher class": ((1, 1, 5), PatchThreat(1, 1)),
    "plain rows, numpy": ((1, 5, 1), PatchThreat(1, 1)),
    "alerts": ((1, 1, 5), PatchThreat(1, 1)),
    "randomized by declaration": ((1, 5, 1), PatchThreat(1, 1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in SOUND if case.name in TINY], ids=str)
def test_sound_for_every_base(case):
    """All answers of five views, three classes; of what is certified, all answers of the two views a patch changes."""
    shape, threat = TINY[case.name]
    x = torch.arange(9, 14).reshape(1, *shape) / 64
    keys, certified = views(case.make, shape, x), 0
    assert len(keys) == 5
    for answers in product(range(3), repeat=5):
        said = dict(zip(keys, 8 * np.eye(3)[list(answers)] - 4, strict=True))
        claim = case.make(Told(said, nothing_new), 3, shape).certify(x, threat)
        if not bool(claim.certified[0]):
            continue
        certified += 1
        for place in range(5):
            x_adv = x.clone()
            x_adv.view(-1)[place] += 0.5
            fresh = [key for key in views(case.make, shape, x_adv) if key not in said]
            assert len(fresh) == 2
            for attacked in product(range(3), repeat=2):
                told = {**said, **dict(zip(fresh, 8 * np.eye(3)[list(attacked)] - 4, strict=True))}
                predicted = int(case.make(Told(told, nothing_new), 3, shape).predict(x_adv)[0])
                assert predicted == int(claim.prediction[0]) or (predicted == -1 and case.place.alerts)
    assert certified > 0


def views(make, shape, x):
    """What the base is asked of, in order."""
    said = {}
    make(Told(said, lambda: np.zeros(3)), 3, shape).certify(x, PatchThreat(1, 1))
    return list(said)


def nothing_new():
    raise AssertionError("the base is asked of a view that no patch makes")


def test_the_small_network_is_sound():
    """Every 1×1 patch of 0, 1/4, ..., 1 at every place."""
    model, rng = ibp(), np.random.default_rng(0)
    x = torch.from_numpy(rng.random((12, 1, 8, 8))).float()
    claim = model.certify(x, PatchThreat(1, 1))
    assert int(claim.certified.sum()) > 0
    for row, column, value in product(range(8), range(8), (0, 0.25, 0.5, 0.75, 1)):
        x_adv = x.clone()
        x_adv[:, :, row, column] = value
        assert bool((model.predict(x_adv) == claim.prediction)[claim.certified].all())
