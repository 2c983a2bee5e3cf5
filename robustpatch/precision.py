"""In which precision torch is about to compute, as far as its settings tell."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustpatch.errors import InvalidInput

_REDUCED = ("tf32", "bf16")
_ONEDNN = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")  # variables that no setting of torch shows
_CONVOLUTIONS = {
    "cuda": "torch.backends.cudnn.allow_tf32 = False",
    "cpu": "torch.backends.mkldnn.conv.fp32_precision = 'ieee'",
}


def check_device(name: str) -> str:
    """The name itself, if torch has that device here; otherwise `InvalidInput`."""
    try:
        known = torch.device(name).type in ("cpu", "cuda", "mps", "xpu")
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        known, reason = False, (str(error).splitlines() or ["unknown"])[0]
    else:
        reason = "unknown"
    if not known:
        raise InvalidInput(f"device is {name!r}, which is not to be had here ({reason}); use cpu")
    return name


def settings(device: str) -> tuple[object, ...]:
    """The settings that decide how float32 convolutions and products are computed on a kind of device."""
    backends: Any = torch.backends
    switches: list[object] = [torch.is_autocast_enabled(device) and str(torch.get_autocast_dtype(device))]
    if device == "cuda":
        switches += [_precision(backends.cuda.matmul), _precision(getattr(backends.cudnn, "conv", backends.cudnn))]
    if device == "cpu":
        switches += [_precision(getattr(backends.mkldnn, name, None)) for name in ("matmul", "conv")]
    return tuple(switches)


def is_reduced_anywhere(model: nn.Module, device: torch.device | str | None = None) -> bool:
    """Whether the model computes anything in less than float32 on images on `device`; None: where its weights are, and
    without weights on the GPU if there is one.
    """
    tensors = [*model.parameters(), *model.buffers()]
    kinds = {tensor.device.type for tensor in tensors}
    if device is not None:
        kinds.add(torch.device(device).type)
    kinds = kinds or {"cuda" if torch.cuda.is_available() else "cpu"}
    return any(is_reduced(tensors, kind) for kind in kinds)


def is_reduced(tensors: Iterable[Tensor], device: str) -> bool:
    """Whether anything is computed in less than float32: bfloat16, float16, TF32 or autocast."""
    return bool(remedies(tensors, device))


def remedies(tensors: Iterable[Tensor], device: str) -> list[str]:
    """What to do, a statement each, for nothing to be computed in less than float32; none where nothing is. Where the
    switch of all products and convolutions is on, it comes first, and then what is left.
    """
    narrow = any(t.is_floating_point() and t.dtype not in (torch.float32, torch.float64) for t in tensors)
    autocast, *products = settings(device)
    reduced = [product in _REDUCED for product in products]
    found = ["network.float()"] * narrow + ["leave torch.autocast"] * bool(autocast)
    if device == "cpu":
        found += [f"unset {name} before Python starts" for name in _ONEDNN if _lets_reduce(os.environ.get(name))]
    if any(reduced) and getattr(torch.backends, "fp32_precision", None) in _REDUCED:
        return [*found, "torch.backends.fp32_precision = 'ieee'"]
    statements = ("torch.set_float32_matmul_precision('highest')", _CONVOLUTIONS.get(device, ""))
    return found + [statement for statement, on in zip(statements, reduced, strict=False) if on]


@contextmanager
def float32_only(device: str) -> Iterator[None]:
    """Within it nothing in float32 is computed in less on that kind of device: no autocast, no TF32, no products or
    convolutions in bfloat16. Afterwards all is as it was.
    """
    backends: Any = torch.backends
    switches: list[Any] = []
    if device == "cuda":
        switches = [backends.cuda.matmul, getattr(backends.cudnn, "conv", backends.cudnn)]
    if device == "cpu":
        switches = [getattr(backends.mkldnn, name, None) for name in ("matmul", "conv")]
    reduced = [(switch, found) for switch in switches if (found := _precision(switch)) in _REDUCED]
    try:
        for switch, _ in reduced:
            _switch(switch, "ieee")
        with torch.autocast(device, enabled=False):
            yield
    finally:
        for switch, found in reduced:
            _switch(switch, "none")  # what is set for all backends together, if that is what was in force
            if _precision(switch) != found:
                _switch(switch, found)


def _switch(backend: Any, value: str) -> None:
    if hasattr(backend, "fp32_precision"):
        backend.fp32_precision = value
    else:
        backend.allow_tf32 = value == "tf32"


def _lets_reduce(mode: str | None) -> bool:
    """Whether such a mode of oneDNN lets it compute float32 in less."""
    return (mode or "STRICT").upper() != "STRICT"


def _precision(backend: Any) -> str:
    """A backend's `fp32_precision`; before torch 2.9, what its `allow_tf32` amounts to."""
    if hasattr(backend, "fp32_precision"):
        return str(backend.fp32_precision)
    return "tf32" if getattr(backend, "allow_tf32", False) else "ieee"
