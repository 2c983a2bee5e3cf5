"""The contributions of ablations to classes: votes, or scores in whole units; sums of either are exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustpatch.errors import InvalidInput

UNITS = 2**16  # of a summed score: the units that make up the range of one ablation's contribution


@dataclass(frozen=True)
class Votes:
    """`cast` [B,N,K]: the votes as computed. `close` [B,N,K]: those that rounding could turn over.

    Raises `InvalidInput` for anything but booleans: a certificate allows for one vote for a class from each ablation
    touched; counts and weights can change by more.
    """

    cast: Bool[Tensor, "B N K"]
    close: Bool[Tensor, "B N K"]
    unit: ClassVar[int] = 1
    """The most that one ablation can add to a count."""
    slack: ClassVar[int] = 0
    """The units by which rounding moves a contribution that does not turn over."""
    sums: ClassVar[torch.dtype] = torch.int32
    """The type that holds sums over all ablations."""

    def __post_init__(self) -> None:
        for name in ("cast", "close"):
            dtype = getattr(self, name).dtype
            if dtype != torch.bool:
                raise InvalidInput(
                    f"{name} votes have dtype {dtype}; an ablation votes for a class or does not, so pass booleans"
                )

    @property
    def counts(self) -> Int[Tensor, "B K"]:
        """The votes for each class."""
        return self.cast.sum(dim=1, dtype=self.sums)

    @property
    def shares(self) -> Float[Tensor, "B K"]:
        """counts / N."""
        return self.counts.to(torch.float32) / self.cast.shape[1]

    @property
    def lower(self) -> Bool[Tensor, "B N K"]:
        """The votes that stay cast however rounding falls."""
        return self.cast & ~self.close

    @property
    def upper(self) -> Bool[Tensor, "B N K"]:
        """The votes cast at most, however rounding falls."""
        return self.cast | self.close

    def without(self, silent: Bool[Tensor, "B N 1"]) -> Votes:
        """The same, where these ablations vote for no class, and nobody knows what else they might: all are close."""
        return Votes(self.cast & ~silent, self.close | silent)

    def of(self, rows: Tensor | slice) -> Votes:
        """The votes of some of the images."""
        return Votes(self.cast[rows], self.close[rows])


@dataclass(frozen=True)
class Scored:
    """Scores that each ablation adds to the classes, in whole units: `cast` [B,N,K] in 0, …, `unit`.

    `unit` is the whole range of a contribution: a score s in [lo, hi] counts floor(unit·(s - lo)/(hi - lo)). Every
    class loses the same N·lo by it, so the order of the sums is that of the scores, to a unit each. Integer sums depend
    on no order, absorb nothing and tie exactly. `slack` is by how many units rounding may move each contribution; a
    certificate counts it against itself for every ablation and class. Raises `InvalidInput` for other values.
    """

    cast: Int[Tensor, "B N K"]
    slack: int
    unit: ClassVar[int] = UNITS
    sums: ClassVar[torch.dtype] = torch.int64  # 50,176 ablations have more units than int32 holds

    def __post_init__(self) -> None:
        if self.cast.dtype != torch.int32:
            raise InvalidInput(f"cast scores have dtype {self.cast.dtype}; count them in units, as int32")
        low, high = (int(self.cast.min()), int(self.cast.max())) if self.cast.numel() else (0, 0)
        if low < 0 or high > self.unit or self.slack < 0:
            raise InvalidInput(
                f"cast scores range from {low} to {high} and slack is {self.slack}; a contribution is of 0 to "
                f"{self.unit} units, and slack not negative"
            )

    @property
    def close(self) -> Bool[Tensor, "B N K"]:
        """None: no contribution turns over, all are counted with their slack."""
        return torch.zeros_like(self.cast, dtype=torch.bool)

    @property
    def counts(self) -> Int[Tensor, "B K"]:
        """The units for each class."""
        return self.cast.sum(dim=1, dtype=self.sums)

    @property
    def shares(self) -> Float[Tensor, "B K"]:
        """The mean contributions, in [0, 1]. float32 may round two together: those below the most stay below it."""
        counts = self.counts
        shares = (counts.double() / (self.cast.shape[1] * self.unit)).to(torch.float32)
        most = shares.amax(dim=1, keepdim=True)
        beaten = counts < counts.amax(dim=1, keepdim=True)
        return torch.where(beaten, shares.minimum(torch.nextafter(most, torch.zeros_like(most))), shares)

    @property
    def lower(self) -> Int[Tensor, "B N K"]:
        """The least that rounding leaves of each contribution; int64, as all that is summed from it."""
        return (self.cast.long() - self.slack).clamp(min=0)

    @property
    def upper(self) -> Int[Tensor, "B N K"]:
        """The most that rounding makes of each contribution; int64."""
        return (self.cast.long() + self.slack).clamp(max=self.unit)

    def without(self, silent: Bool[Tensor, "B N 1"]) -> Scored:
        """The same, where these ablations add nothing; since nobody knows what else they might, with slack for all."""
        return Scored(self.cast.masked_fill(silent, 0), self.unit if bool(silent.any()) else self.slack)

    def of(self, rows: Tensor | slice) -> Scored:
        """The contributions for some of the images."""
        return Scored(self.cast[rows], self.slack)


def first_argmax(values: Tensor) -> Tensor:
    """Index of the largest value along the last axis, the lowest index among equals, on every device.

    Raises `InvalidInput` where the largest is no finite number: NaN beside any value, an overflow, of which nobody
    knows how large it was, or nothing but -inf. A class at -inf beside a finite one is never the largest.
    """
    largest = values.amax(dim=-1, keepdim=True)
    if values.is_floating_point() and not bool(torch.isfinite(largest).all()):
        raise InvalidInput(
            "outputs contain NaN, or the largest of an image is infinite, so that none is the prediction; mend the "
            "model (a division by 0? an overflow, in less than float32?)"
        )
    number = torch.arange(values.shape[-1], device=values.device)
    return torch.where(values == largest, number, values.shape[-1]).amin(dim=-1)
