"""Models, certificates and attacks of others that are made in ways of their own: they are asked, and do not crash."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from attacks import Ensemble, PatchPGD, Proposal, SparseRS
from evaluate import evaluate
from evaluate.model.identity import weights_sha256
from evaluate.runs.batch import Settings
from robustpatch.certificates.exact import Certificate
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.asking import certify
from robustpatch.errors import InvalidInput
from tests.evaluate.foreign import DARK, ONE, RANDOM, Bright, run, scores


class Claim(Certificate):
    """Made from one argument; what it says of itself changes as it is read."""

    def __init__(self, found):
        for name, value in vars(found).items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_reads", [])

    def __getattribute__(self, name):
        held = object.__getattribute__(self, name)
        if name != "certified":
            return held
        self._reads.append(name)
        return held if len(self._reads) < 4 else ~held


def test_a_certificate_of_a_class_of_its_own(tmp_path):
    """It is read as the certificate that it holds, once and for all."""

    class Own(Bright):
        def certify(self, x, threat):
            return Claim(super().certify(x, threat))

    found = certify(as_classifier(Own()), torch.zeros(2, 1, 4, 4), ONE)
    assert type(found) is Certificate
    assert found.certified.tolist() == found.certified.tolist()
    assert run(Own(), tmp_path, RANDOM).verdict == "broken"


def test_a_proposal_of_a_class_of_its_own(tmp_path):
    @dataclass(frozen=True)
    class Found(Proposal):
        def __init__(self, found):
            for name, value in vars(found).items():
                object.__setattr__(self, name, value)

    @dataclass(frozen=True)
    class Own(SparseRS):
        def __call__(self, *given, generator):
            return Found(super().__call__(*given, generator=generator))

    assert run(Bright(), tmp_path, Own(queries=100)).verdict == "broken"


class Extra(Bright):
    """Keeps its threshold in what `get_extra_state` returns."""

    def __init__(self, threshold: float = 0.9) -> None:
        super().__init__()
        self._table = {"threshold": threshold}

    def forward(self, x):
        return scores((x.amax((1, 2, 3)) > self._table["threshold"]).float() + 0 * x.sum((1, 2, 3)))

    def get_extra_state(self):
        return dict(self._table)

    def set_extra_state(self, state):
        self._table = dict(state)


def test_extra_state_tells_models_apart(tmp_path):
    """Runs, resumes, and is another model with another state."""
    assert weights_sha256(Extra()) == weights_sha256(Extra()) != weights_sha256(Extra(0.95))
    for _ in range(2):
        assert run(Extra(2.0), tmp_path, RANDOM).verdict == "held"
    with pytest.raises(InvalidInput, match="model_sha256"):
        run(Extra(), tmp_path, RANDOM)
    assert run(Extra(), tmp_path / "anew", PatchPGD(restarts=1), RANDOM).verdict == "broken"


class Tight(Bright):
    """Falls to a pixel near 0.61 alone, which climbing finds; the backward pass of five images or more fails."""

    def forward(self, x):
        changed = torch.sigmoid(60 * (0.03 - (x - 0.61).abs().amin((1, 2, 3))))
        if len(x) > 4 and changed.requires_grad:
            changed.register_hook(lambda _: self.fail())
        return scores(changed)

    def fail(self):
        raise RuntimeError("shape mismatch in the kernel")


@pytest.mark.parametrize("within", [False, True], ids=["alone", "nested"])
def test_an_error_of_the_backward_pass_is_no_missing_gradient(within, tmp_path):
    """An ensemble went on with the rest, which says HELD, and told nobody."""
    both = Ensemble((PatchPGD(restarts=30, steps=60), SparseRS(queries=100)), "both")
    attack = Ensemble((both,), "outer") if within else both
    with pytest.raises(InvalidInput, match=r"pgd-30 of both failed as it climbed \(shape mismatch in the kernel\)"):
        evaluate(Tight().eval(), DARK, ONE, [attack], Settings(4, gallery=0), tmp_path)
    smaller = Ensemble((PatchPGD(restarts=30, steps=60, batch=4), SparseRS(queries=100)), "both")
    assert run(Tight(), tmp_path / "smaller", smaller).verdict == "broken"
