"""In which precision torch is about to compute, as far as its settings tell."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from robustpatch.errors import InvalidInput

_REDUCED = ("tf32", "bf16")


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


def is_reduced(tensors: Iterable[Tensor], device: str) -> bool:
    """Whether anything is computed in less than float32: bfloat16, float16, TF32 or autocast."""
    narrow = any(t.is_floating_point() and t.dtype not in (torch.float32, torch.float64) for t in tensors)
    autocast, *products = settings(device)
    return narrow or bool(autocast) or any(product in _REDUCED for product in products)


def _precision(backend: Any) -> str:
    """A backend's `fp32_precision`; before torch 2.9, what its `allow_tf32` amounts to."""
    if hasattr(backend, "fp32_precision"):
        return str(backend.fp32_precision)
    return "tf32" if getattr(backend, "allow_tf32", False) else "ieee"
