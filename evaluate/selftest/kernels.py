"""This machine's convolutions and products, held against float64: in float32 within what rounding can do, in bfloat16
within what its eight bits can.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from evaluate.selftest.check import Check
from robustpatch import precision
from robustpatch.networks.convolution import conv2d, misread

_RANDOM = 60  # shapes of convolutions beside those below
Convolve = Callable[[Tensor, Tensor, "tuple[int, int]", "tuple[int, int]"], Tensor]


@dataclass(frozen=True)
class Convolution:
    """Images [B,C,H,W], a weight [O,C,h,w], stride and padding."""

    images: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)


SHAPES = (
    # of the shipped networks
    Convolution((3, 2, 28, 29), (64, 2, 5, 2), padding=(2, 0)),
    Convolution((3, 64, 28, 28), (128, 64, 5, 1), (2, 1), (2, 0)),
    Convolution((3, 1, 28, 28), (32, 1, 3, 3), padding=(1, 1)),
    Convolution((2, 6, 32, 32), (64, 6, 16, 16), (16, 16)),
    # of the two kinds that oneDNN's bfloat16 kernel for AMX has answered wrongly
    Convolution((2, 16, 6, 2), (16, 16, 2, 2), (2, 2)),
    Convolution((4, 32, 7, 2), (32, 32, 3, 2), (2, 2), (1, 0)),
    Convolution((2, 8, 9, 9), (16, 8, 3, 8), padding=(1, 0)),
    Convolution((2, 24, 8, 8), (16, 24, 1, 3)),
)


def check_kernels(device: str) -> list[Check]:
    """Convolutions and products of this machine, in float32 and bfloat16."""
    generator = torch.Generator().manual_seed(0)
    shapes = [*SHAPES, *(drawn(generator) for _ in range(_RANDOM))]
    plain: Convolve = lambda x, weight, stride, padding: functional.conv2d(x, weight, None, stride, padding)  # noqa: E731
    ours: Convolve = lambda x, weight, stride, padding: conv2d(x, weight, None, stride, padding)  # noqa: E731
    found = []
    for kind in (torch.float32, torch.bfloat16):
        wrong = [one for one in shapes if not right(one, ours, kind, device)]
        found.append(_told(f"convolutions in {_name(kind)}", len(shapes), [f"{one}" for one in wrong]))
        products = [(rows, inner) for rows in (1, 3, 17) for inner in (8, 65, 512, 1_000)]
        off = [one for one in products if not product_right(*one, kind, device)]
        found.append(_told(f"products in {_name(kind)}", len(products), [f"{one}" for one in off]))
    bare = [one for one in shapes if not right(one, plain, torch.bfloat16, device)]
    known = [one for one in bare if misread(one.images, one.weight, one.stride, one.padding)]
    told = f"{len(bare)} of {len(shapes)} shapes wrong, {len(known)} of them kept from it by robustpatch"
    named = f": networks of others that compute in bfloat16 may be wrong, first at {bare[0]}" if bare else ""
    found.append(Check("PyTorch's own bfloat16 convolution", None, told + named))
    return found


def drawn(generator: torch.Generator) -> Convolution:
    """A shape drawn at random, of sizes that small networks have."""

    def one(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    tall, wide = one(1, 7), one(1, 7)
    return Convolution(
        (one(1, 4), one(1, 70), one(tall, 20), one(wide, 20)),
        (one(1, 48), 0, tall, wide),
        (one(1, 3), one(1, 3)),
        (one(0, tall // 2), one(0, wide // 2)),
    )


@torch.no_grad()
def right(shape: Convolution, convolve: Convolve, kind: torch.dtype, device: str) -> bool:
    """True where every output lies within what rounding in that precision allows, of float64's."""
    generator = torch.Generator().manual_seed(1)
    outputs, _, tall, wide = shape.weight
    x = torch.randn(shape.images, generator=generator).to(kind)
    weight = torch.randn((outputs, shape.images[1], tall, wide), generator=generator).to(kind)
    truth, size = (
        functional.conv2d(one.double(), other.double(), None, shape.stride, shape.padding)
        for one, other in ((x, weight), (x.abs(), weight.abs()))
    )
    _leave_garbage(device)
    with precision.float32_only(torch.device(device).type):
        found = convolve(x.to(device), weight.to(device), shape.stride, shape.padding).cpu()
    return found.shape == truth.shape and _within(found, truth, size, weight[0].numel(), kind)


@torch.no_grad()
def product_right(rows: int, inner: int, kind: torch.dtype, device: str) -> bool:
    """The same of a product of matrices."""
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(shape, generator=generator).to(kind) for shape in ((rows, inner), (inner, 33)))
    _leave_garbage(device)
    with precision.float32_only(torch.device(device).type):
        found = (a.to(device) @ b.to(device)).cpu()
    return _within(found, a.double() @ b.double(), a.double().abs() @ b.double().abs(), inner, kind)


def _within(found: Tensor, truth: Tensor, size: Tensor, terms: int, kind: torch.dtype) -> bool:
    """`size`: the sum of the absolute values of the terms. In float32 any order of summation errs by at most
    terms·2^-24 of it, or little more; numbers of eight bits, summed in float32 and rounded, by far less than 2^-7.
    """
    error = (terms + 2) * 2.0**-23 if kind == torch.float32 else 2.0**-7
    return bool(((found.double() - truth).abs() <= error * size + 1e-12).all())


def _leave_garbage(device: str) -> None:
    """Memory that a kernel which reads what nobody wrote finds: no numbers."""
    for power in (10, 14, 18):
        torch.full((2**power,), torch.nan, device=device)


def _told(name: str, asked: int, wrong: list[str]) -> Check:
    told = f"{asked} shapes" if not wrong else f"{len(wrong)} of {asked} shapes wrong, first {wrong[0]}"
    return Check(name, not wrong, told)


def _name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")
