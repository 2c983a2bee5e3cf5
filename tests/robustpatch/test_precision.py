"""PITFALLS 17, 24: the default guard follows the lowest precision that anything is computed in."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from robustpatch import Columns, InvalidInput, PatchThreat, SmoothedClassifier, Threshold, checks
from robustpatch.precision import check_device, remedies
from tests import toys


def guard(base: nn.Module) -> float:
    return SmoothedClassifier(base, Columns(2), num_classes=3, voting=Threshold(0.3)).guard


def test_any_narrow_tensor_widens_the_guard():
    """A bfloat16 weight or buffer anywhere, not only in the first parameter; float32 and integers do not."""
    assert guard(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))) == 1e-4
    assert guard(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16())) == 1e-2
    buffered = nn.Linear(2, 2)
    buffered.register_buffer("scale", torch.ones(2, dtype=torch.float16))
    assert guard(buffered) == 1e-2


def test_autocast_and_reduced_products_widen_the_guard():
    """Under autocast, and where float32 products may be computed in bfloat16."""
    base = nn.Linear(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert guard(base) == 1e-2
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        reduced = guard(base)
    finally:
        torch.set_float32_matmul_precision(before)
    assert guard(base) == 1e-4
    assert reduced == (1e-2 if hasattr(torch.backends, "fp32_precision") else 1e-4)


def test_changed_weights_are_checked_again():
    """PITFALLS 19: loading, editing in place and a training step each end what an earlier check allowed."""
    base = toys.seeded(lambda: toys.WideStrip(Columns(2), image_size=toys.SIZE, num_classes=toys.CLASSES))
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.zero_()
    model = SmoothedClassifier(base, Columns(2), num_classes=toys.CLASSES).eval()
    x = toys.images(2)
    assert len(model.certify(x, PatchThreat(1, 1)).prediction) == 2  # all weights zero: it sees nothing
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    with pytest.raises(InvalidInput, match="sees more than its band"):
        model.certify(x, PatchThreat(1, 1))


@pytest.mark.parametrize("name", ["meta", "nonsense", "cuda:99", ""])
def test_devices_that_are_not_to_be_had(name):
    """By name, with the remedy."""
    with pytest.raises(InvalidInput, match="use cpu"):
        check_device(name)
    assert check_device("cpu") == "cpu"


def test_weights_made_in_inference_mode_are_checked_at_every_call(monkeypatch):
    """They count no versions, so no earlier check can be trusted; and nothing fails for it."""
    calls, original = [], checks.base_is_sound
    monkeypatch.setattr(checks, "base_is_sound", lambda *arguments: calls.append(1) or original(*arguments))
    for mode, expected in ((torch.inference_mode(), 2), (torch.no_grad(), 1)):
        calls.clear()
        with mode:
            model = toys.smoothed(toys.linear())
        for _ in range(2):
            model.certify(toys.images(2), PatchThreat(1, 1))
        assert len(calls) == expected


SCRIPT = """
import torch
from robustpatch.precision import is_reduced, remedies

backends = torch.backends
for number, cause in enumerate([
    "pass",
    "backends.fp32_precision = 'tf32'",
    "backends.cudnn.conv.fp32_precision = backends.cuda.matmul.fp32_precision = backends.fp32_precision = 'tf32'",
    "backends.cudnn.conv.fp32_precision = backends.mkldnn.conv.fp32_precision = 'tf32'",
    "torch.set_float32_matmul_precision('medium')",
]):
    exec(cause)
    assert is_reduced([], "cuda"), cause
    assert is_reduced([], "cpu") or number == 0, cause
    for device in ("cuda", "cpu"):
        for again in range(2):
            for statement in remedies([], device):
                assert is_reduced([], device), (cause, statement)
                exec(statement)
        assert not is_reduced([], device), (cause, device)
"""


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9 has fewer switches")
def test_the_remedies_named_are_remedies():
    """Executed as they are written they leave nothing reduced, and each is needed; cuDNN is in TF32 unless told not."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_narrow_weights_and_autocast_have_their_remedies():
    weights = [torch.zeros(1, dtype=torch.bfloat16)]
    with torch.autocast("cpu", torch.bfloat16):
        assert remedies(weights, "cpu") == ["network.float()", "leave torch.autocast"]
    assert remedies([torch.zeros(1)], "cpu") == []
