"""Voting by scores of other kinds: summed as they are, or each class for itself.

With a network that sees one block at a time, these are the classifiers known as Clipped BagNet and BagCert: block
smoothing with other voting.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, isfinite
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from robustpatch.errors import InvalidInput
from robustpatch.voting.rules import AboveThreshold, Voting, excess, log_odds
from robustpatch.voting.votes import UNITS, Scored

_LEAK = 0.01  # slope of a clipped logit's stand-in outside its range


class Summed(Voting):
    """Every ablation adds its score, in [0, 1], to each class: the most that a patch gains with one is the range.

    Scores are counted in units of 2^-16, rounded down; |floor(a) - floor(b)| ≤ ceil(|a - b|), so a score that moves by
    at most `guard` moves by at most ceil(guard·2^16) units.
    """

    def _votes(self, scores: Float[Tensor, "B N K"], guard: float) -> Scored:
        return Scored((scores * UNITS).floor().to(torch.int32), ceil(guard * UNITS))

    def capacity(self, num_classes: int) -> int:
        """The whole range for every class."""
        return UNITS * num_classes

    @property
    def link(self) -> str:
        return str(self)

    def soft(self, logits: Float[Tensor, "B N K"]) -> Float[Tensor, "B N K"]:
        """The scores themselves."""
        return self.scores(logits)


@dataclass(frozen=True)
class SummedScores(Summed):
    """The softmax probabilities are summed, as in masked derandomized smoothing (PatchGuard, Xiang et al. 2021)."""

    guard: float | None = None

    def __str__(self) -> str:
        return "scores"

    @property
    def link(self) -> str:
        return "softmax"

    def capacity(self, num_classes: int) -> int:
        """One range for all classes together, and a few units for rounding: probabilities add up to 1."""
        return floor(UNITS * (1 + excess(num_classes)))

    def margins(self, logits: Float[Tensor, "B N K"]) -> Float[Tensor, "B N K"]:
        return log_odds(logits)


@dataclass(frozen=True)
class ClippedTanh(Summed):
    """tanh(scale·x - shift) of each logit x, in [-1, 1], is summed.

    Counted as (tanh + 1)/2 = sigmoid(2·(scale·x - shift)). (Zhang et al. 2020, Clipped BagNet, scale 0.05 and shift 1.)
    """

    scale: float = 0.05
    shift: float = 1.0
    guard: float | None = None

    def __str__(self) -> str:
        return f"tanh:{self.scale}:{self.shift}"

    def __post_init__(self) -> None:
        if not (0 < self.scale < float("inf") and isfinite(self.shift)):
            raise InvalidInput(
                f"scale is {self.scale} and shift {self.shift}; tanh(scale·x - shift) needs a positive scale and a "
                "finite shift"
            )
        super().__post_init__()

    def scores(self, logits: Float[Tensor, "B N K"]) -> Float[Tensor, "B N K"]:
        return torch.sigmoid(self.margins(logits))

    def margins(self, logits: Float[Tensor, "B N K"]) -> Float[Tensor, "B N K"]:
        return 2 * (self.scale * logits - self.shift)


@dataclass(frozen=True)
class ClippedLogits(Summed):
    """Logits clipped to [0, top] are summed: local evidence that is never negative, as PatchGuard wants it.

    (Xiang et al. 2021, Section 3.3, clip at 0 alone. A bound above makes one unit a fixed part of a logit, 2^-16·top.)
    """

    top: float = 16.0
    guard: float | None = None

    def __str__(self) -> str:
        return f"relu:{self.top}"

    def __post_init__(self) -> None:
        if not 0 < self.top < float("inf"):
            raise InvalidInput(f"top is {self.top}; logits are clipped to [0, top], which needs a positive number")
        super().__post_init__()

    def scores(self, logits: Float[Tensor, "B N K"]) -> Float[Tensor, "B N K"]:
        return (logits / self.top).clamp(0, 1)

    def margins(self, logits: Float[Tensor, "B N K"]) -> Float[Tensor, "B N K"]:
        """The log-odds of a score that is kept from 0 and 1, with a gradient everywhere."""
        x = logits / self.top
        return torch.logit(self.scores(logits), eps=1e-4) + _leak(x)

    def soft(self, logits: Float[Tensor, "B N K"]) -> Float[Tensor, "B N K"]:
        """The clipped logits, with a small slope outside."""
        x = logits / self.top
        return x.clamp(0, 1) + _leak(x)


@dataclass(frozen=True)
class SigmoidThreshold(AboveThreshold):
    """`AboveThreshold` of each class's own sigmoid: at 1/2, a vote wherever the logit is not negative.

    An ablation may vote for all classes. (BagCert, Metzen & Yatsura 2021, Section 3: a step function forward, the
    gradient of a sigmoid backward.)
    """

    theta: float = 0.5
    guard: float | None = None
    name: ClassVar[str] = "sigmoid"

    @property
    def link(self) -> str:
        return "sigmoid"

    def scores(self, logits: Float[Tensor, "B N K"]) -> Float[Tensor, "B N K"]:
        return torch.sigmoid(logits)

    def log_odds(self, logits: Float[Tensor, "B N K"]) -> Float[Tensor, "B N K"]:
        return logits

    def sharp(self, logits: Float[Tensor, "B N K"]) -> Float[Tensor, "B N K"]:
        """The votes, with the gradient of `soft`: what the certificate's loss counts is what is certified."""
        soft = self.soft(logits)
        return (self.margins(logits) >= 0).to(soft) + soft - soft.detach()


def _leak(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """0, with a small slope; without one where x is infinite, since ∞ - ∞ is NaN."""
    return _LEAK * torch.where(torch.isinf(x), 0, x - x.detach())
