"""Bounds of sums of products in floating point, computed in any order.

A linear operator, y = Wa + b of n products a component, takes the middle c of the ends and the largest distance r from
it: Wa + b lies within |W|r of Wc + b (Gowal et al. 2018, Section 3; Chiang et al. 2020, Section 3). Rounding, u the
unit roundoff and γ_k = ku/(1 - ku):

    what the network computes of a is within γ_{n+1}(|W||a| + |b|) of Wa + b, in any order of summation, fused or not
    (Higham 2002, Section 3.1), and |a| ≤ |c| + r; what we compute of c is within γ_{n+1}(|W||c| + |b|) of Wc + b.

So the output is within |W|(r + 2γ_{n+1}(|c| + r)) + 2γ_{n+1}|b| of what we compute of c. That radius costs one product,
of |W| with an inflated r, and is itself computed with at most n + 8 roundings of terms that are not negative: taking
m = n + 8 for n + 1 and a factor 1 + 2γ_m covers those, as (1 + 2mu)(1 - u)^m ≥ 1 for mu ≤ 1/2; a few smallest normal
numbers cover gradual underflow, and the ends are moved to the next float outside. Where sums of |W||a| + |b| could
overflow in some order, the radius is infinite; so it is where some other number could that is computed on the way.

Assumed: sums of products in IEEE arithmetic of the weights' type, float32 or float64, with subnormal numbers as they
are. That nothing is computed in TF32 or bfloat16, and that no thread takes subnormal numbers for 0, is left to
`defenses.ibp`, which refuses those settings; that no Winograd or Fourier transform replaces a sum, as in NNPACK and
cuDNN, to `sums_of_products`, within which network and bounds are computed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from robustpatch.defenses.bounds.call import Box
from robustpatch.defenses.bounds.graph import undisturbed
from robustpatch.errors import InvalidInput


@dataclass(frozen=True)
class Linear:
    """A linear operator: its value Wa + b, |W|s of an s ≥ 0, |b| (or what rounds like it), and products a component.

    `peak`: of an s ≥ |a|, a bound of the numbers computed on the way that |W|s + |b| does not bound; None: there are
    none. `least`: of an s ≥ |a|, what underflow on the way can cost beyond `terms` smallest normal numbers.
    """

    value: Callable[[Tensor], Tensor]
    magnitude: Callable[[Tensor], Tensor]
    offset: Tensor | float
    terms: int
    peak: Callable[[Tensor], Tensor] | None = None
    least: Callable[[Tensor], Tensor] | None = None


def linear_bounds(linear: Linear, box: Box, *, outward: bool) -> Box:
    """Bounds what the operator computes of anything in the box; see the module."""
    middle = (box.lower + box.upper) / 2
    if not outward:
        value, radius = linear.value(middle), linear.magnitude((box.upper - box.lower) / 2)
        return Box(value - radius, value + radius)
    radius = _widened(linear, middle, torch.maximum(box.upper - middle, middle - box.lower))
    value = linear.value(middle)
    return Box(next_float(value - radius, -torch.inf), next_float(value + radius, torch.inf))


def _widened(linear: Linear, middle: Tensor, radius: Tensor) -> Tensor:
    """|W|(r + 2γ(|c| + r)) + 2γ|b|, rounded up."""
    rate, least = rounding(linear.terms, middle.dtype), torch.finfo(middle.dtype).tiny
    largest = middle.abs() + radius
    inflated = (radius + rate * largest + 16 * least) * (1 + rate)
    shift = rate * linear.offset + 16 * (linear.terms + 1) * least
    if linear.least is not None:
        shift = shift + linear.least(largest)
    widened = unless_overflown((linear.magnitude(inflated) + shift) * (1 + rate), rate)
    if linear.peak is not None:
        peak = linear.peak(largest)
        widened = torch.where(peak <= torch.finfo(middle.dtype).max / 8, widened, torch.inf)
    return widened


def unless_overflown(widened: Tensor, rate: float) -> Tensor:
    """Infinite where a sum of products might be, on the way, though what it comes to is not: it is at most the rate's
    part of what it is widened by.
    """
    return torch.where(widened > rate * torch.finfo(widened.dtype).max / 4, torch.inf, widened)


def rounding(terms: int, dtype: torch.dtype) -> float:
    """2γ_m for m = terms + 8: see the module. Raises `InvalidInput` for sums too long, or a type without a proof."""
    if dtype not in (torch.float32, torch.float64):
        raise InvalidInput(f"network computes in {dtype}, but rounding is bounded in float32 and float64; use float()")
    share = (terms + 8) * torch.finfo(dtype).eps / 2
    if share > 0.25:
        raise InvalidInput(f"network sums {terms} products, too many for {dtype}; use network.double()")
    return 2 * share / (1 - share)


def next_float(values: Tensor, toward: float) -> Tensor:
    return torch.nextafter(values, torch.full_like(values, toward))


class _Transforms:
    """cuDNN's and NNPACK's switches, which are the whole process's: off as long as any thread needs them off."""

    def __init__(self) -> None:
        self._lock, self._users, self._before = threading.Lock(), 0, (True, True)

    def off(self) -> None:
        with self._lock:
            found = torch.backends.cudnn.enabled, torch._C._get_nnpack_enabled()
            if self._users == 0:
                self._before = found
            self._users += 1
            self._switch(False, False)

    def as_before(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._switch(*self._before)

    @staticmethod
    def _switch(cudnn: bool, nnpack: bool) -> None:
        torch.backends.cudnn.enabled = cudnn
        torch._C._set_nnpack_enabled(nnpack)


_transforms = _Transforms()


@contextmanager
def sums_of_products() -> Iterator[None]:
    """Within it every convolution is summed up as it is written: without NNPACK and cuDNN, which may transform it, with
    errors of the size of the largest input, not of those that a sum is made of. Threads may be within it together.
    """
    _transforms.off()
    try:
        yield
    finally:
        _transforms.as_before()


def flushes_subnormal() -> bool:
    """Tells whether any of the threads that compute for this one on the CPU takes subnormal numbers for 0."""
    with undisturbed(), torch.inference_mode():
        return bool((_subnormal(torch.get_num_threads()).mul(1.0).view(torch.int32) == 0).any())


@lru_cache(maxsize=4)
def _subnormal(threads: int) -> Tensor:
    """So many subnormal numbers that each thread gets some."""
    return torch.full((threads * 2**15,), 10**6, dtype=torch.int32, device="cpu").view(torch.float32)
