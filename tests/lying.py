"""Kernels that lie: oneDNN's own, where this processor has it, and stand-ins that need none."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def fill_memory(value: float) -> None:
    """Leave `value` in memory that is handed out next."""
    sizes = [2**k for k in range(9, 23)]
    held = [torch.full((size,), value, dtype=torch.bfloat16) for size in sizes for _ in range(8 if size < 2**20 else 2)]
    del held


def reads_foreign_memory() -> bool:
    """Whether bfloat16 convolutions whose output is one pixel wide read memory that nobody wrote: PITFALLS 31."""
    x, weight = torch.ones(8, 128, 16, 2, dtype=torch.bfloat16), torch.ones(256, 128, 3, 3, dtype=torch.bfloat16)
    right = functional.conv2d(x.float(), weight.float(), stride=2, padding=1)
    for value in (torch.nan, 1e4):
        fill_memory(value)
        found = functional.conv2d(x, weight, stride=2, padding=1).float()
        if not bool(torch.allclose(found, right, rtol=0.02)):
            return True
    return False


def multiplies_wrongly() -> bool:
    """Whether bfloat16 convolutions of few channels by a wide kernel give wrong numbers, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(1, 6, 16, 32, generator=generator), torch.randn(8, 6, 16, 16, generator=generator)
    x, weight = x.bfloat16(), weight.bfloat16()
    right, found = functional.conv2d(x.float(), weight.float()), functional.conv2d(x, weight).float()
    return not bool(torch.allclose(found, right, atol=0.05 * float(right.abs().max())))


def _narrow(x: Tensor) -> bool:
    return x.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(x.device.type)


class Wrong(nn.Module):
    """A base whose kernel of less than float32 is wrong in the same way at every call: it agrees with itself."""

    def __init__(self, base: nn.Module, error: float = 6.0) -> None:
        super().__init__()
        self.base, self.error = base, error

    def forward(self, x: Tensor) -> Tensor:
        logits = self.base(x)
        if not _narrow(x):
            return logits
        return logits + self.error * torch.eye(logits.shape[-1], device=x.device)[-1].to(logits.dtype)


class Unwritten(nn.Module):
    """A base whose kernel of less than float32 adds memory that nobody wrote to its logits, where that is not zero."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        logits = self.base(x)
        if not _narrow(x):
            return logits
        return logits + torch.empty(2**16, dtype=torch.bfloat16, device=x.device)[: logits.shape[-1]].to(logits.dtype)


class NowAndThen(nn.Module):
    """A base that lies in less than float32 at every `every`-th call alone: NaN, or numbers that are far off."""

    def __init__(self, base: nn.Module, every: int = 3, value: float = torch.nan) -> None:
        super().__init__()
        self.base, self.every, self.value, self.calls = base, every, value, 0

    def forward(self, x: Tensor) -> Tensor:
        logits = self.base(x)
        self.calls += _narrow(x)
        if not _narrow(x) or self.calls % self.every:
            return logits
        return torch.cat([logits[:, :-1], torch.full_like(logits[:, -1:], self.value)], dim=1)
