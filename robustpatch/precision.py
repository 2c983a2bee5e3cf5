"""The precision in which torch is about to compute, as far as its settings tell."""

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
    autocast = torch.is_autocast_enabled(device) and str(torch.get_autocast_dtype(device))
    return autocast, *map(_precision, _switches(device))


def matching(module: nn.Module, x: Tensor) -> Tensor:
    """The images in the type of the module's first weights; as they are without such, and under autocast."""
    weight = next((tensor for tensor in module.parameters() if tensor.is_floating_point()), None)
    return x if weight is None or torch.is_autocast_enabled(x.device.type) else x.to(weight.dtype)


def is_reduced_anywhere(model: nn.Module, device: torch.device | str | None = None) -> bool:
    """True where the model computes anything in less than float32 on images on `device`; None: where its weights are,
    and without weights on the GPU if there is one.
    """
    tensors = [*model.parameters(), *model.buffers()]
    kinds = {tensor.device.type for tensor in tensors}
    if device is not None:
        kinds.add(torch.device(device).type)
    kinds = kinds or {"cuda" if torch.cuda.is_available() else "cpu"}
    return any(is_reduced(tensors, kind) for kind in kinds)


def is_reduced(tensors: Iterable[Tensor], device: str) -> bool:
    """True where anything is computed in less than float32: bfloat16, float16, TF32 or autocast."""
    return bool(remedies(tensors, device))


def remedies(tensors: Iterable[Tensor], device: str) -> list[str]:
    """The statements after which nothing is computed in less than float32; none where nothing is. Where the switch of
    all products and convolutions is on, it comes first, and then what is left.
    """
    narrow = any(t.is_floating_point() and t.dtype not in (torch.float32, torch.float64) for t in tensors)
    autocast, *products = settings(device)
    reduced = [product in _REDUCED for product in products]
    found = ["network.float()"] * narrow + ["leave torch.autocast"] * bool(autocast)
    if device == "cpu":
        modes = {name: os.environ.get(name) or "STRICT" for name in _ONEDNN}
        found += [f"unset {name} before Python starts" for name, mode in modes.items() if mode.upper() != "STRICT"]
    if any(reduced) and getattr(torch.backends, "fp32_precision", None) in _REDUCED:
        return [*found, "torch.backends.fp32_precision = 'ieee'"]
    statements = ("torch.set_float32_matmul_precision('highest')", _CONVOLUTIONS.get(device, ""))
    return found + [statement for statement, on in zip(statements, reduced, strict=False) if on]


@contextmanager
def float32_only(device: str) -> Iterator[None]:
    """Within it nothing in float32 is computed in less on that kind of device: no autocast, no TF32, no products or
    convolutions in bfloat16. Afterwards all is as it was.
    """
    reduced = [(switch, found) for switch in _switches(device) if (found := _precision(switch)) in _REDUCED]
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


def _switches(device: str) -> list[Any]:
    """The backends whose precision of products, and of convolutions, counts on a kind of device."""
    backends: Any = torch.backends
    if device == "cuda":
        return [backends.cuda.matmul, getattr(backends.cudnn, "conv", backends.cudnn)]
    return [getattr(backends.mkldnn, name, None) for name in ("matmul", "conv")] if device == "cpu" else []


def _switch(backend: Any, value: str) -> None:
    if hasattr(backend, "fp32_precision"):
        backend.fp32_precision = value
    else:
        backend.allow_tf32 = value == "tf32"


def _precision(backend: Any) -> str:
    """A backend's `fp32_precision`; before torch 2.9, the same in terms of its `allow_tf32`."""
    if hasattr(backend, "fp32_precision"):
        return str(backend.fp32_precision)
    return "tf32" if getattr(backend, "allow_tf32", False) else "ieee"
