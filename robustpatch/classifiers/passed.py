"""Which tests a classifier has passed, and what its base is to be asked next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robustpatch import precision
from robustpatch.classifiers.content import content
from robustpatch.errors import InvalidInput

_KEPT = 8  # contents that are remembered


def check_when(check: str) -> None:
    """Refuse what is neither of the two."""
    if check not in ("once", "every call"):
        raise InvalidInput(f'check is {check!r}; use "once" (and a few ablations at each call) or "every call"')


class Passed:
    """The contents of a classifier with which it passed a test, the last few. A copy, pickled or not, starts anew."""

    def __init__(self) -> None:
        self._contents: list[tuple[object, ...]] = []
        self._asked: dict[int, int] = {}
        self.calls = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Passed, ()

    def holds(self, told: tuple[object, ...]) -> bool:
        """Whether the test was passed with this content."""
        return told in self._contents

    def note(self, told: tuple[object, ...]) -> None:
        """Remember that it was."""
        if not self.holds(told):
            self._contents = [told, *self._contents][:_KEPT]

    def turn(self, total: int, number: int) -> int:
        """Where to go on among `total` ablations, so many of which are asked now: where the last call stopped."""
        first = self._asked.get(total, 0)
        self._asked[total] = (first + number) % total
        return first


def told(model: nn.Module, x: Tensor, guard: float) -> tuple[object, ...]:
    """The content of the model, and what else decides how it scores such images: shape, device and precision."""
    settings = precision.settings(x.device.type)
    return content(model, ("passed",)), tuple(x.shape[1:]), x.dtype, str(x.device), settings, guard


def spread(total: int, first: int, number: int, device: torch.device | str = "cpu") -> Tensor:
    """`number` of the `total` ablations from place `first` on in an order that spreads them evenly: every step is about
    the golden section of the whole, and `total` steps visit each once.
    """
    step = next(s for s in range(max(1, round(0.618 * total)), 2 * total + 1) if _coprime(s, total))
    return torch.arange(first, first + min(number, total), device=device) * step % total


def _coprime(a: int, b: int) -> bool:
    while b:
        a, b = b, a % b
    return a == 1
