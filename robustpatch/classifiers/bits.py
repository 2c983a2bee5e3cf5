"""The numbers of a tensor or an array as bits, in a digest: NaN equals itself there, and -0 is not 0."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


def of_array(value: np.ndarray) -> bytes:
    """SHA-256 of the numbers in row-major order. Raises `ValueError` for an array of objects, which has none."""
    if value.dtype.hasobject:
        raise ValueError("array holds objects, which have no bits of their own; use numbers")
    return hashlib.sha256(np.ascontiguousarray(value).tobytes()).digest()


def of_tensor(value: Tensor) -> tuple[bytes, ...]:
    """SHA-256 of each of the dense tensors that together say what this one holds."""
    return tuple(_digest(part) for part in _dense(value.detach()))


def _digest(value: Tensor) -> bytes:
    numbers = value.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return hashlib.sha256(numbers.view(torch.uint8).numpy().data).digest()


def _dense(value: Tensor) -> list[Tensor]:
    if value.is_quantized:
        parts = [value.int_repr()]
        if value.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams):
            return [*parts, value.q_per_channel_scales(), value.q_per_channel_zero_points()]
        return [*parts, torch.tensor([value.q_scale(), value.q_zero_point()], dtype=torch.float64)]
    if value.layout == torch.strided:
        return [value]
    if value.layout == torch.sparse_coo:
        return [value._indices(), value._values()]
    if value.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [value.crow_indices(), value.col_indices(), value.values()]
    return [value.ccol_indices(), value.row_indices(), value.values()]
