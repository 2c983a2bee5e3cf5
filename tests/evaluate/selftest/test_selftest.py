"""The self-test passes here, and sees machines that compute wrongly and certifiers that lie."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from typer.testing import CliRunner

from evaluate.cli.program import app
from evaluate.selftest import certifiers, kernels, votes
from evaluate.selftest.kernels import Convolution
from evaluate.selftest.planted import make
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.networks.convolution import conv2d

SMALL = Convolution((2, 3, 6, 7), (4, 3, 3, 2), (2, 1), (1, 0))


def own(x, weight, stride, padding):
    return functional.conv2d(x, weight, None, stride, padding)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_wrong_kernels_are_seen(kind):
    """One weight left out, one output no number, a sum in less precision, another shape: none passes for rounding."""
    assert kernels.right(SMALL, own, kind, "cpu")

    def spoilt(change):
        def convolve(x, weight, stride, padding):
            return change(own(x, weight, stride, padding).clone(), x, weight)

        return convolve

    def no_number(y, *_):
        y[1, 2, 0, 0] = torch.nan
        return y

    assert not kernels.right(SMALL, spoilt(no_number), kind, "cpu")
    assert not kernels.right(SMALL, spoilt(lambda y, *_: y * 1.02), kind, "cpu")
    assert not kernels.right(SMALL, spoilt(lambda y, *_: y[:1]), kind, "cpu")
    assert not kernels.right(SMALL, spoilt(lambda y, *_: y.flip(1)), kind, "cpu")
    coarse = kernels.right(SMALL, spoilt(lambda y, *_: y.bfloat16().to(y.dtype)), kind, "cpu")
    assert coarse == (kind == torch.bfloat16)


def test_what_robustpatch_keeps_from_a_kernel_is_told(monkeypatch):
    """A kernel of PyTorch's that is wrong in bfloat16 is a note where robustpatch's own is right, and it fails where
    it is not.
    """
    monkeypatch.setattr(kernels, "SHAPES", (SMALL, Convolution((1, 16, 4, 9), (2, 16, 1, 8))))
    monkeypatch.setattr(kernels, "_RANDOM", 0)

    def wrong(x, weight, *more, **options):
        y = real(x, weight, *more, **options)
        return y + 9 if x.dtype == torch.bfloat16 else y

    real = functional.conv2d
    monkeypatch.setattr(kernels.functional, "conv2d", wrong)
    found = {one.name: one for one in kernels.check_kernels("cpu")}
    note = found["PyTorch's own bfloat16 convolution"]
    assert note.passed is None
    assert note.told.startswith("2 of 2 shapes wrong, 1 of them kept from it by robustpatch")
    assert [found[f"convolutions in {kind}"].passed for kind in ("float32", "bfloat16")] == [True, False]
    assert str(found["convolutions in bfloat16"]).startswith("FAIL  convolutions in bfloat16: 1 of 2 shapes wrong")
    assert conv2d is kernels.conv2d


def test_votes_that_depend_on_the_batch_are_seen(monkeypatch):
    """One image at a time gets other votes than all of them."""
    monkeypatch.setattr(votes, "SMOOTHED", ("mnist-columns2",))
    monkeypatch.setattr(votes, "_IMAGES", 4)
    assert all(one.passed for one in votes.check_votes("cpu"))
    honest = SmoothedClassifier.votes

    def coupled(self, x):
        return honest(self, x.flip(3) if len(x) == 1 else x)

    monkeypatch.setattr(SmoothedClassifier, "votes", coupled)
    failed = [one.name for one in votes.check_votes("cpu") if not one.passed]
    assert failed == ["votes of mnist-columns2, 1 at a time"]


def test_planted_certifiers(monkeypatch):
    """A sound one among the planted is missed, and a planted one in its place is no sound one."""
    assert len(certifiers.BUGS) == 12
    monkeypatch.setattr(certifiers, "_BUDGET", 200)
    monkeypatch.setattr(certifiers, "BUGS", {"1 off by one": certifiers._PLAIN, "": certifiers._PLAIN})
    caught, sound = certifiers.check_certifiers()
    assert (caught.passed, sound.passed) == (False, True)
    assert caught.told == "1 of 2, but not: "
    monkeypatch.setattr(certifiers, "make", lambda _: make("ties forgotten"))
    assert not certifiers.check_certifiers()[1].passed


@pytest.mark.slow
def test_the_command():
    """Everything, here: it passes."""
    done = CliRunner().invoke(app, ["selftest"])
    assert done.exit_code == 0, done.output
    assert "pass  planted certifiers caught: 12 of 12" in done.stdout
    assert "FAIL" not in done.stdout
