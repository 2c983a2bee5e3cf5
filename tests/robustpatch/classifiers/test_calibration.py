"""PITFALLS 31: what is computed in less than float32 is held against float32, not against itself alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from robustpatch import Columns, InvalidInput, Threshold, calibrate_guard
from robustpatch.classifiers import calibration
from robustpatch.classifiers.calibration import Deviation, calibrate, deviation_from_float32
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.precision import float32_only, settings
from tests import lying, toys

BASES = {
    "wrong in the same way every time": (lambda: lying.Wrong(toys.linear()), "wrong kernel or an overflow"),
    "NaN at every third call": (lambda: lying.NowAndThen(toys.linear(), 3), "wrong kernel or an overflow"),
    "far off at every third call": (lambda: lying.NowAndThen(toys.linear(), 3, 6.0), "wrong kernel or an overflow"),
    "NaN at every seventh call": (lambda: lying.NowAndThen(toys.linear(), 7), "scores differ by (nan|inf) over"),
    "memory that nobody wrote": (lambda: lying.Unwritten(toys.linear()), "wrong kernel or an overflow"),
}


def narrow(base: nn.Module, guard: float | None = None) -> SmoothedClassifier:
    return toys.smoothed(copy.deepcopy(base).eval(), voting=Threshold(0.3, guard)).bfloat16()


@pytest.mark.parametrize("kind", list(BASES))
@pytest.mark.parametrize("autocast", [False, True])
def test_a_lying_kernel_is_refused(kind, autocast):
    """In bfloat16's weights and under autocast; in float32 the same bases are in order."""
    x, own = toys.images(3), toys.smoothed(BASES[kind][0]().eval(), chunk=8)
    assert calibrate_guard(own, x) < 1e-5
    model = own if autocast else copy.deepcopy(own).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), pytest.raises(InvalidInput, match=BASES[kind][1]):
        calibrate_guard(model, x)


def test_agreement_with_itself_is_not_enough():
    """A base that is wrong in the same way at every call moves by nothing at all between its evaluations."""
    model, x = narrow(lying.Wrong(toys.linear())), toys.images(3)
    again = model.scores(x)
    assert all(torch.equal(model.scores(some), own) for some, own in zip(x.split(1), again.split(1), strict=True))
    found = deviation_from_float32(model, x)
    assert found is not None
    assert found.logit == pytest.approx(6, abs=0.1)
    assert found.score > 0.5
    assert not found.explained


def test_both_measurements_are_told_apart():
    """Honest bfloat16: far from float32 by rounding alone, and near itself. float32 has no other to be held against."""
    x, base = toys.images(3), toys.linear(scale=1.0)
    found = calibrate(narrow(base, 0.02), x)
    assert found.images == 3
    assert found.float32 is not None
    assert 1e-4 < found.float32 < 0.02
    assert found.largest == max(found.itself, found.float32)
    right = calibrate(toys.smoothed(base), x)
    assert (right.float32, right.largest) == (None, right.itself)


def test_rounding_beyond_the_guard_is_refused_with_the_remedy():
    """The number, the guard and what to do; a guard above it is enough."""
    x, base = toys.images(3), toys.linear(scale=10.0)
    with pytest.raises(InvalidInput, match=r"scores .* differ by 0\.\d+ from float32's .* guard is 0.001: .*float\(\)"):
        calibrate_guard(narrow(base, 1e-3), x)
    assert calibrate_guard(narrow(base), x) > 1e-3
    model = toys.smoothed(base, voting=Threshold(0.3, 1e-3))
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(InvalidInput, match=r"float32: leave torch.autocast; or"):
        calibrate_guard(model, x)


def test_the_model_and_the_settings_stay_as_they_are():
    """Weights, precision and switches; the witness is outside autocast, and nothing is compared in float32."""
    x, model = toys.images(2), narrow(toys.linear())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = settings("cpu")
    deviation_from_float32(model, x)
    assert settings("cpu") == state
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert next(model.parameters()).dtype == torch.bfloat16
    assert deviation_from_float32(toys.smoothed(), x) is None
    with torch.autocast("cpu", torch.bfloat16):
        found = deviation_from_float32(toys.smoothed(), x)
        assert torch.is_autocast_enabled("cpu")
    assert found is not None
    assert found.score > 1e-5


def test_float32_that_is_computed_in_less():
    """TF32 and bfloat16 products behind the switches are less than float32, and the witness is without them."""
    if not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("torch before 2.9 has fewer switches")
    every: Any = torch.backends
    switch = every.mkldnn.matmul
    before = switch.fp32_precision, every.fp32_precision
    try:
        switch.fp32_precision = "bf16"
        assert deviation_from_float32(toys.smoothed(), toys.images(2)) is not None
        with float32_only("cpu"):
            assert settings("cpu") == (False, "ieee", settings("cpu")[2])
        assert switch.fp32_precision == "bf16"
        switch.fp32_precision, every.fp32_precision = "none", "tf32"
        with float32_only("cpu"):
            assert not any(value in ("tf32", "bf16") for value in settings("cpu"))
        assert switch.fp32_precision == "tf32"
        every.fp32_precision = "ieee"
        assert switch.fp32_precision == "ieee", "it followed the switch of all before"
    finally:
        switch.fp32_precision, every.fp32_precision = "none", before[1]
        if switch.fp32_precision != before[0]:
            switch.fp32_precision = before[0]


class Uncopied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = toys.linear()

    def __deepcopy__(self, memo):
        raise RuntimeError("not this one")

    def forward(self, x):
        return self.base(x)


def test_a_model_that_cannot_be_copied():
    with pytest.raises(InvalidInput, match=r"cannot be copied \(not this one\).*use it in float32: model.float\(\)"):
        deviation_from_float32(toys.smoothed(Uncopied()).bfloat16(), toys.images(1))


@pytest.mark.parametrize(
    ("found", "explained"),
    [
        (Deviation(0.24, 0.1, 0.5), True),
        (Deviation(0.26, 0.1, 1.0), False),
        (Deviation(2.4, 0.9, 10.0), True),
        (Deviation(2.6, 0.1, 10.0), False),
        (Deviation(torch.nan, torch.nan, 10.0), False),
        (Deviation(torch.inf, 1.0, torch.inf), True),
    ],
)
def test_what_rounding_explains(found, explained):
    """A quarter of the largest logit, or of 1."""
    assert found.explained == explained


@pytest.mark.skipif(not lying.reads_foreign_memory(), reason="no kernel here reads memory that nobody wrote")
def test_the_real_kernel_is_caught():
    """A residual network of a library on narrow images, as it comes: the witness is all that stands before it."""
    torchvision = pytest.importorskip("torchvision")
    net = toys.seeded(lambda: torchvision.models.resnet18(num_classes=4))
    net.conv1 = nn.Conv2d(6, 64, 7, stride=2, padding=3, bias=False)
    model = SmoothedClassifier(net, Columns(16, 16), num_classes=4, voting=Threshold(0.3, 0.5)).eval()
    x = toys.images(1, 3, (96, 32))
    with torch.autocast("cpu", torch.bfloat16):
        seen = []
        for value in (1.0, 1e4, -1e4):
            lying.fill_memory(value)
            seen.append(model.scores(x))
        if torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2]):
            pytest.skip("no kernel that this network uses here reads memory that nobody wrote")
        assert any(refused(model, x) for _ in range(5)), "what lies in memory is a matter of chance"


def refused(model: SmoothedClassifier, x: torch.Tensor) -> bool:
    try:
        calibrate_guard(model, x)
    except InvalidInput as error:
        return "differ by" in str(error)
    return False


def test_what_is_left_in_memory_is_met_again():
    """Most blocks that are handed out next hold what was left, in all sizes."""
    for value in (torch.nan, 1e30):
        calibration._leave(value, torch.device("cpu"))
        found = [torch.empty(2**power, dtype=torch.bfloat16) for power in range(9, 20)]
        hit = [float((one == value).float().mean() if value == value else one.isnan().float().mean()) for one in found]
        assert sum(share > 0.5 for share in hit) >= len(hit) / 2


def test_in_float32_it_costs_nothing():
    """The base is not asked at all."""
    base, asked = toys.linear(), []
    base.register_forward_hook(lambda module, given, out: asked.append(len(out)))
    assert deviation_from_float32(toys.smoothed(base), toys.images(2)) is None
    assert not asked
