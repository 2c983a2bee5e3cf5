"""PITFALLS 17, 24: the default guard follows the lowest precision that anything is computed in."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import robustpatch
from robustpatch import Columns, InvalidInput, PatchThreat, SmoothedClassifier, Threshold
from robustpatch.classifiers import base_check
from robustpatch.precision import check_device, is_reduced, remedies, settings
from tests import toys

SWITCHES = hasattr(torch.backends, "fp32_precision")  # one for each backend and one for all: since torch 2.9


def guard(base: nn.Module) -> float:
    return SmoothedClassifier(base, Columns(2), num_classes=3, voting=Threshold(0.3)).guard


def test_any_narrow_tensor_widens_the_guard():
    """A bfloat16 weight or buffer anywhere, not only in the first parameter; float32 and integers do not."""
    assert guard(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))) == 1e-4
    assert guard(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16())) == 1e-2
    buffered = nn.Linear(2, 2)
    buffered.register_buffer("scale", torch.ones(2, dtype=torch.float16))
    assert guard(buffered) == 1e-2


@pytest.mark.parametrize("precision", ["medium", "high"])
def test_autocast_and_reduced_products_widen_the_guard(precision):
    """Under autocast, and where float32 products may be computed in bfloat16 or TF32."""
    base = nn.Linear(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert guard(base) == 1e-2
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        reduced, on_a_gpu = guard(base), is_reduced([], "cuda")
    finally:
        torch.set_float32_matmul_precision(before)
    assert guard(base) == 1e-4
    assert reduced == (1e-2 if SWITCHES else 1e-4)
    assert on_a_gpu


@pytest.fixture
def backends():
    """The switches of all products, of CUDA's and of cuDNN's convolutions, put back afterwards."""
    found = (torch.backends, torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [backend.fp32_precision for backend in found]
    yield found
    for backend, switch in zip(found, before, strict=True):
        backend.fp32_precision = switch


MATMUL, CONVOLUTIONS = "torch.set_float32_matmul_precision('highest')", "torch.backends.cudnn.allow_tf32 = False"
ALL = "torch.backends.fp32_precision = 'ieee'"


@pytest.mark.skipif(not SWITCHES, reason="torch before 2.9 has fewer switches")
@pytest.mark.parametrize(
    ("switches", "seen", "expected"),
    [
        (("none", "ieee", "ieee"), ("ieee", "ieee"), []),
        (("none", "tf32", "ieee"), ("tf32", "ieee"), [MATMUL]),
        (("none", "ieee", "tf32"), ("ieee", "tf32"), [CONVOLUTIONS]),
        (("none", "tf32", "tf32"), ("tf32", "tf32"), [MATMUL, CONVOLUTIONS]),
        (("tf32", "none", "none"), ("tf32", "tf32"), [ALL]),
        (("tf32", "ieee", "ieee"), ("ieee", "ieee"), []),
        (("ieee", "none", "none"), ("ieee", "ieee"), []),
        (("ieee", "none", "tf32"), ("ieee", "tf32"), [CONVOLUTIONS]),
    ],
)
def test_each_switch_of_a_gpu_is_read(backends, switches, seen, expected):
    """What is in force, its remedies, and the guard of weights on a GPU (none is needed); weights on the CPU heed the
    switch of all alone, and a base without weights is on the GPU if there is one.
    """
    for backend, switch in zip(backends, switches, strict=True):
        backend.fp32_precision = switch
    assert settings("cuda") == (False, *seen)
    assert remedies([], "cuda") == expected
    assert is_reduced([], "cuda") == bool(expected)
    with FakeTensorMode():
        on_a_gpu = nn.Linear(2, 2, device="cuda")
    wide, wide_here = bool(expected), switches[0] == "tf32"
    assert guard(on_a_gpu) == (1e-2 if wide else 1e-4)
    assert guard(nn.Linear(2, 2)) == (1e-2 if wide_here else 1e-4)
    here = wide if torch.cuda.is_available() else wide_here
    assert guard(nn.Flatten()) == (1e-2 if here else 1e-4)


def test_an_older_torch_has_one_switch_each(monkeypatch):
    """Before torch 2.9 it is `allow_tf32`, of CUDA's products and of cuDNN."""
    for matmul, convolutions in product((False, True), repeat=2):
        older = SimpleNamespace(
            cuda=SimpleNamespace(matmul=SimpleNamespace(allow_tf32=matmul)),
            cudnn=SimpleNamespace(allow_tf32=convolutions),
            mkldnn=SimpleNamespace(),
        )
        with monkeypatch.context() as patch:
            patch.setattr(torch, "backends", older)
            assert settings("cuda") == (False, *("tf32" if on else "ieee" for on in (matmul, convolutions)))
            assert remedies([], "cuda") == [MATMUL] * matmul + [CONVOLUTIONS] * convolutions
            assert remedies([], "cpu") == []


@pytest.mark.parametrize("name", ["meta", "nonsense", "cuda:99", ""])
def test_devices_that_are_not_to_be_had(name):
    """By name, with the remedy."""
    with pytest.raises(InvalidInput, match="use cpu"):
        check_device(name)
    assert check_device("cpu") == "cpu"


def test_weights_made_in_inference_mode_are_told_by_their_numbers(monkeypatch):
    """They count no versions, but hold numbers as all weights do; an edit in place is seen."""
    full, original = [], base_check.base_is_sound
    monkeypatch.setattr(base_check, "base_is_sound", lambda *a, **b: full.append(not b["again"]) or original(*a, **b))
    for mode in (torch.inference_mode, torch.no_grad):
        full.clear()
        with mode():
            model = toys.smoothed(toys.linear())
        for _ in range(2):
            model.certify(toys.images(2), PatchThreat(1, 1))
        with mode():
            model.base[1].weight += 1
        model.certify(toys.images(2), PatchThreat(1, 1))
        assert full == [True, False, True]


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


@pytest.mark.skipif(not SWITCHES, reason="torch before 2.9 has fewer switches")
def test_the_remedies_named_are_remedies():
    """Executed as they are written they leave nothing reduced, and each is needed; cuDNN is in TF32 unless told not."""
    root = Path(robustpatch.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_narrow_weights_and_autocast_have_their_remedies():
    weights = [torch.zeros(1, dtype=torch.bfloat16)]
    with torch.autocast("cpu", torch.bfloat16):
        assert remedies(weights, "cpu") == ["network.float()", "leave torch.autocast"]
    assert remedies([torch.zeros(1)], "cpu") == []


@pytest.mark.parametrize("name", ["ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"])
def test_what_onednn_is_told_by_variables(name, monkeypatch):
    """No setting of torch shows them. A GPU's libraries do not read them."""
    elsewhere = remedies([torch.zeros(1)], "cuda")
    for mode, reduced in (("BF16", True), ("any", True), ("STRICT", False), ("", False)):
        monkeypatch.setenv(name, mode)
        assert is_reduced([torch.zeros(1)], "cpu") == reduced
        assert remedies([torch.zeros(1)], "cuda") == elsewhere
        assert remedies([], "cpu") == [f"unset {name} before Python starts"] * reduced
