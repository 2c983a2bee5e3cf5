"""Remember which tests a classifier has passed, and choose what its base is asked next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robustpatch import precision
from robustpatch.classifiers.content import content
from robustpatch.errors import InvalidInput

Told = tuple[object, ...]  # see `told`
_KEPT = 8  # contents that are remembered


def check_when(check: str) -> None:
    """Refuse what is neither of the two."""
    if check not in ("once", "every call"):
        raise InvalidInput(f'check is {check!r}; use "once" (and a few ablations at each call) or "every call"')


class Passed:
    """The contents of a classifier with which it passed a test, the last few. A copy, pickled or not, starts anew."""

    def __init__(self) -> None:
        self._contents: list[Told] = []
        self._asked: dict[int, int] = {}
        self.calls = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Passed, ()

    def holds(self, told: Told) -> bool:
        """Return whether the test was passed with this content."""
        return told in self._contents

    def note(self, told: Told) -> None:
        """Remember that it was."""
        if not self.holds(told):
            self._contents = [told, *self._contents][:_KEPT]

    def turn(self, total: int, number: int) -> int:
        """Return where the last call stopped among `total` ablations, `number` of which are asked now."""
        first = self._asked.get(total, 0)
        self._asked[total] = (first + number) % total
        return first


def told(model: nn.Module, x: Tensor, guard: float) -> Told:
    """Return the content of the model, and what else decides how it scores such images: shape, device and precision."""
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
