"""What must raise: PITFALLS 9, 13, 15, 19 and 21 at the door, with messages that say what to do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustpatch.ablations.kinds import Blocks, Columns, Rows
from robustpatch.classifiers.calibration import calibrate_guard
from robustpatch.classifiers.checks import image_values, shape_and_type
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.errors import InvalidInput
from robustpatch.networks import MnistCNN, StripNet
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Threshold, TopOne
from robustpatch.voting.scored import SigmoidThreshold, SummedScores
from tests import toys

ONE = PatchThreat(1, 1)


def answers(model):
    """The calls that need evaluation mode and sound images."""
    certify = (lambda x: model.certify(x, ONE), model.largest_certified, model.certifiable_scores)
    return (model.votes, model.predict, *certify)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x * 255, "divide by 255"),
        (lambda x: x * 2 - 1, "must lie in"),
        (lambda x: x + 0.5, "must lie in"),
        (lambda x: x[..., :0], r"shape \(3, 1, 6, 0\); pass|larger than the image, 6x0"),
    ],
)
def test_values_that_are_none(spoil, message):
    """0..255, normalised, shifted, empty: each with its remedy."""
    for call in answers(toys.smoothed()):
        with pytest.raises(InvalidInput, match=message):
            call(spoil(toys.images(3)))


def test_images_with_a_gradient_are_images():
    """Answered as without, and without torch's warning, an error here."""
    model, x = toys.smoothed(), toys.images(3)
    assert torch.equal(model.certify(x.clone().requires_grad_(), ONE).margin, model.certify(x, ONE).margin)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda x: (x * 255).to(torch.uint8),
            r"dtype torch.uint8; pass floats in \[0, 1\] \(for bytes: x.float\(\) / 255",
        ),
        (lambda x: x[0], r"shape \(1, 6, 8\); pass \[batch"),
        (lambda x: x[:, 0], r"shape \(3, 6, 8\); pass \[batch"),
    ],
)
def test_tensors_that_are_no_images(spoil, message):
    """Bytes and missing axes. (The suite's type checks come first in the model's methods, users have none.)"""
    for check in (image_values, shape_and_type):
        with pytest.raises(InvalidInput, match=message):
            check(spoil(toys.images(3)))
    for call in answers(toys.smoothed()):
        with pytest.raises(Exception, match=r"dtype|shape|Float"):
            call(spoil(toys.images(3)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, -1e-3])
@pytest.mark.parametrize("base", [toys.linear, toys.strip])
def test_pixels_that_are_none(base, bad):
    """PITFALLS 15: one bad pixel in one image of the batch, and nothing is certified; the rest alone is fine."""
    model, x = toys.smoothed(base()), toys.images(3)
    x[1, 0, 2, 5] = bad
    for call in (*answers(model), lambda z: calibrate_guard(model, z)):
        with pytest.raises(InvalidInput, match=r"NaN or infinite|must lie in \[0, 1\]"):
            call(x)
    model.certify(x[[0, 2]], ONE)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("ablation", [Columns(2), Rows(2), Blocks(2)])
def test_hidden_pixels_never_reach_a_score(ablation, bad):
    """PITFALLS 15: scores of untouched ablations are bitwise equal at equal batch shape, whatever is in the patch."""
    model, x = toys.smoothed(ablation=ablation), toys.images(2)
    spoiled = x.clone()
    spoiled[:, :, 1:3, 2:4] = bad
    touched = ablation.masks(*toys.SIZE)[:, 1:3, 2:4].any(dim=2).any(dim=1)
    assert touched.any()
    assert not touched.all()
    before, after = model.scores(x), model.scores(spoiled)
    assert torch.equal(before[:, ~touched], after[:, ~touched])
    assert not torch.equal(before[:, touched], after[:, touched])


@pytest.mark.parametrize("part", ["whole", "part"])
@pytest.mark.parametrize("base", [toys.linear, toys.strip])
def test_training_mode(base, part):
    """PITFALLS 13: the model, or one module deep inside it, in training mode; scores and gradients are allowed."""
    model, x = toys.smoothed(base()), toys.images(2)
    (model if part == "whole" else list(model.base.modules())[-1]).train()
    for call in (*answers(model), lambda z: calibrate_guard(model, z)):
        with pytest.raises(InvalidInput, match=r"is in training mode.*call model.eval\(\)"):
            call(x)
    assert model(x).requires_grad
    assert model.soft(x).shape == model.scores(x)[:, 0].shape


@pytest.mark.parametrize("coupled", [toys.Coupled, toys.Dropped])
def test_bases_that_couple_images_or_draw_at_random(coupled):
    """PITFALLS 13: batch norm without running statistics and functional dropout, refused by the first certificate."""
    kind = SmoothedClassifier
    for call in (lambda m, x: m.certify(x, ONE), kind.largest_certified, kind.certifiable_scores, calibrate_guard):
        model = toys.smoothed(toys.seeded(coupled))
        with pytest.raises(InvalidInput, match=r"the guard is 0.0001.*mend the base"):
            call(model, toys.images(3))


@pytest.mark.parametrize("chunk", [2, 3, 4, 8, 16, 24, None])
def test_bases_that_couple_the_ablations_of_one_image(chunk):
    """PITFALLS 13 and 17: in chunks that divide N or hold it, the same ablations are always in company."""
    model = toys.smoothed(toys.seeded(toys.Coupled), chunk=chunk)
    with pytest.raises(InvalidInput, match="mend the base"):
        model.certify(toys.images(1), ONE)


@pytest.mark.parametrize("kind", [toys.WideStrip, toys.WideInOnePass])
@pytest.mark.parametrize("width", [8, 80])
def test_one_pass_bases_that_see_too_much(kind, width):
    """PITFALLS 21: a receptive field one column too wide, also where only a sample of many bands is looked at."""
    size = (6, width)
    for ablation in (Columns(2), Columns(2, 1)):
        model = toys.smoothed(toys.strip(ablation, size, kind=kind), ablation)
        with pytest.raises(InvalidInput, match="sees more than its band"):
            model.certify(toys.images(2, 1, size), ONE)
        toys.smoothed(toys.strip(ablation, size), ablation).certify(toys.images(2, 1, size), ONE)


class Plain(nn.Module):
    """A base of a single module, honest or coupled: its address is free again as soon as it is deleted."""

    def __init__(self, coupling: float) -> None:
        super().__init__()
        self.coupling = coupling
        self.eval()

    def forward(self, x):
        return 3 * x[:, 0].flatten(1)[:, :4] - self.coupling * x[:, 0].mean() * torch.arange(4)


def test_what_was_checked_is_not_taken_for_something_else():
    """PITFALLS 19: another base, chunk, guard or image shape is checked again; a new base at an old address too."""
    model, x = toys.smoothed(), toys.images(3)
    model.certify(x, ONE)
    model.base = toys.seeded(toys.Coupled)
    with pytest.raises(InvalidInput, match="mend the base"):
        model.certify(x, ONE)
    model.base = toys.linear()
    model.base[0] = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten()).eval()
    with pytest.raises(InvalidInput, match="mend the base"):
        model.certify(x, ONE)
    model.chunk = 1  # alone in its chunk, an image is normalised by itself
    model.certify(x, ONE)
    model.chunk = 16
    with pytest.raises(InvalidInput, match="mend the base"):
        model.certify(x, ONE)
    model.voting = Threshold(0.3, guard=0.99)
    model.certify(x, ONE)
    model.voting = Threshold(0.3)
    with pytest.raises(InvalidInput, match="mend the base"):
        model.certify(x, ONE)
    for _ in range(20):
        model.base = Plain(0.0)
        model.certify(x, ONE)
        del model.base
        model.base = Plain(8.0)
        with pytest.raises(InvalidInput, match="mend the base"):
            model.certify(x, ONE)


def test_nan_logits():
    """A NaN score is below every threshold: it must not look like abstention."""
    for value in (float("nan"), float("inf")):
        model = toys.smoothed(toys.Fixed([0.0, value, 0.0, 0.0]))
        with pytest.raises(InvalidInput, match="NaN or infinite logits"):
            model.certify(toys.images(2), ONE)


def test_a_class_that_is_ruled_out():
    """-inf is a score of 0: predicted, certified and shown alike, as with a logit far below the others."""
    x = toys.images(6)
    for voting in (Threshold(0.3), TopOne(), SummedScores(), SigmoidThreshold()):
        ruled, low = (toys.smoothed(toys.Fixed([0.0, value, 0.5, 0.0]), voting=voting) for value in (-torch.inf, -1e9))
        assert torch.equal(ruled(x), low(x))
        assert torch.equal(ruled.predict(x), ruled(x).argmax(dim=1))
        assert torch.equal(ruled.certify(x, ONE).certified, low.certify(x, ONE).certified)


def test_sizes_that_do_not_fit():
    """PITFALLS 9: a patch larger than the image, a band or a stride beyond it."""
    x = toys.images(2)
    for threat in (PatchThreat(7, 1), PatchThreat(1, 9)):
        with pytest.raises(InvalidInput, match="larger than the image, 6x8"):
            toys.smoothed().certify(x, threat)
    for ablation in (Columns(9), Columns(2, 9), Rows(7), Blocks(7, 2)):
        for call in answers(toys.smoothed(ablation=ablation)):
            with pytest.raises(InvalidInput, match="take at most"):
                call(x)


def test_construction():
    """One class, chunks of nothing, a one-pass base for another ablation."""
    with pytest.raises(InvalidInput, match="num_classes is 1"):
        toys.smoothed(classes=1)
    for chunk in (0, -1):
        with pytest.raises(InvalidInput, match="chunk is"):
            toys.smoothed(chunk=chunk)
    for other in (Columns(3), Rows(2), Columns(2, 2)):
        with pytest.raises(InvalidInput, match=r"built for ablation columns:2, .* build it for the ablation wanted"):
            SmoothedClassifier(toys.strip(Columns(2)), other, num_classes=4)


def test_a_base_with_another_number_of_classes():
    """Enumeration and one pass: the message has both shapes."""
    for base in (toys.linear(classes=3), toys.strip(classes=3)):
        with pytest.raises(InvalidInput, match="num_classes is 4: make both agree"):
            toys.smoothed(base).predict(toys.images(2))


def test_calibrate_guard_measures_rounding_alone():
    """Sound networks, one pass and enumerated: a deviation far below the guard; chunk is left as it was."""
    x = toys.images(3, 1, (28, 28))
    cnn = toys.smoothed(toys.seeded(lambda: MnistCNN(num_classes=4)), Columns(14, 7), chunk=6)
    one = toys.smoothed(toys.strip(Columns(2), (28, 28)))
    for model in (cnn, one, toys.smoothed(toys.seeded(lambda: StripNet(Rows(3), num_classes=4)), Rows(3))):
        chunk = model.chunk
        assert 0 <= calibrate_guard(model, x) < 1e-5
        assert model.chunk == chunk


def test_calibrate_guard_refuses_a_nan_in_any_run():
    """A NaN that turns up in company alone must not be lost among finite deviations."""

    class Sometimes(nn.Module):
        def forward(self, x):
            return toys.CLASSES * x.flatten(1)[:, :4] + (float("nan") if len(x) == 6 else 0.0)

    with pytest.raises(InvalidInput, match="mend the base"):
        calibrate_guard(toys.smoothed(Sometimes().eval(), Columns(2, 2), chunk=20), toys.images(3)[:, :, :, :6])
