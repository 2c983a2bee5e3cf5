"""scores -> votes, those too close to call among them.

The certificates assume that an ablation which the patch does not touch votes as before. In floating point its score can
move in the last bits (another batch size, chunk, device or kernel), so a vote within `guard` of turning over is marked
close, and every certificate counts it as absent for the prediction and as present for every rival. Scores that are
summed as they are (`robustpatch.voting.scored`) count in whole units: sums, predictions and certificates stay exact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from math import isfinite, log
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from robustpatch.errors import InvalidInput
from robustpatch.voting.silence import has_score
from robustpatch.voting.votes import Scored, Votes, first_argmax

GUARD_FLOAT32 = 1e-4
GUARD_REDUCED = 1e-2  # bfloat16, float16 or TF32


class Voting(ABC):
    """A rule that turns the logits of each ablation into scores in [0, 1], and these into votes for classes.

    `guard` is the largest change of a score that the certificates allow for; None leaves it to the model: 1e-4 where
    it computes in float32, 1e-2 in bfloat16, float16 or TF32.
    """

    guard: float | None

    def scores(self, logits: Float[Tensor, "B N K"]) -> Float[Tensor, "B N K"]:
        """The scores that votes are made of, and that `guard` bounds the changes of: the softmax probabilities."""
        return logits.softmax(dim=-1)

    @property
    def link(self) -> str:
        """The name of the map from logits to scores: rules of one link share their scores."""
        return "softmax"

    def votes(self, scores: Float[Tensor, "B N K"], guard: float) -> Votes | Scored:
        """The votes, those marked that a change of each score by at most `guard` could turn over.

        An ablation with a score that is NaN or infinite votes for no class, and all of that is close: a patch can do
        this to those that it touches (see `robustpatch.voting.silence`). Nothing can be certified of an image with one.
        """
        known = has_score(scores)
        if bool(known.all()):
            return self._votes(scores, guard)
        return self._votes(torch.where(known, scores, 0), guard).without(~known)

    @abstractmethod
    def _votes(self, scores: Float[Tensor, "B N K"], guard: float) -> Votes | Scored:
        """The same of scores that are numbers."""

    def capacity(self, num_classes: int) -> int:
        """The most that one ablation, whatever it sees, adds to the counts of all `num_classes` together: in votes, or
        in units where scores are summed. A bound on one evaluation; the guard, which is about two, has no part in it.

        Here a vote for every class; rules whose classes compete say less.
        """
        return num_classes

    @abstractmethod
    def margins(self, logits: Float[Tensor, "B N K"]) -> Float[Tensor, "B N K"]:
        """The distance of each vote from turning over, in logits: ≥ 0 where it is cast, < 0 where not (ties apart).

        For a score that is summed, its log-odds.
        """

    @abstractmethod
    def soft(self, logits: Float[Tensor, "B N K"]) -> Float[Tensor, "B N K"]:
        """A differentiable stand-in for the votes, in [0, 1]."""

    def sharp(self, logits: Float[Tensor, "B N K"]) -> Float[Tensor, "B N K"]:
        """Closer to the votes than `soft`, where that is wanted: what the certificate's loss counts."""
        return self.soft(logits)

    def with_guard(self, guard: float | None) -> Voting:
        return replace(self, guard=guard)  # type: ignore[type-var]  # every concrete rule is a dataclass

    def __post_init__(self) -> None:
        if self.guard is not None and not (isfinite(self.guard) and 0 <= self.guard < 1):
            raise InvalidInput(f"guard is {self.guard}; it must lie in [0, 1), or be None for the default")


class AboveThreshold(Voting):
    """An ablation votes for every class with score ≥ `theta`: it may name several, or none.

    A vote is close where |score - theta| ≤ guard.
    """

    theta: float
    name: ClassVar[str]

    def __str__(self) -> str:
        return f"{self.name}:{self.theta}"

    def __post_init__(self) -> None:
        if not 0 < self.theta < 1:
            raise InvalidInput(f"theta is {self.theta}; the threshold must lie strictly between 0 and 1")
        super().__post_init__()

    def _votes(self, scores: Float[Tensor, "B N K"], guard: float) -> Votes:
        return Votes(cast=scores >= self.theta, close=(scores - self.theta).abs() <= guard)

    @abstractmethod
    def log_odds(self, logits: Float[Tensor, "B N K"]) -> Float[Tensor, "B N K"]:
        """log(s / (1 - s)) of the scores s."""

    def margins(self, logits: Float[Tensor, "B N K"]) -> Float[Tensor, "B N K"]:
        """The log-odds of the score less those of theta."""
        return self.log_odds(logits) - log(self.theta / (1 - self.theta))

    def soft(self, logits: Float[Tensor, "B N K"]) -> Float[Tensor, "B N K"]:
        """sigmoid(logit s - logit theta): above one half exactly where the vote is cast."""
        return torch.sigmoid(self.margins(logits))


@dataclass(frozen=True)
class Threshold(AboveThreshold):
    """`AboveThreshold` of the softmax probabilities. (Levine & Feizi 2020, Section 3.)"""

    theta: float = 0.3
    guard: float | None = None
    name: ClassVar[str] = "threshold"

    def capacity(self, num_classes: int) -> int:
        """floor(1/theta), or K where that is less: probabilities ≥ theta add up to 1 at the most.

        To 1 + `excess(K)` in float32, where three classes at theta = 0.33333334 can all get a vote.
        """
        return min(num_classes, int((1 + excess(num_classes)) / self.theta))

    def log_odds(self, logits: Float[Tensor, "B N K"]) -> Float[Tensor, "B N K"]:
        return log_odds(logits)


@dataclass(frozen=True)
class TopOne(Voting):
    """An ablation votes for its highest score alone, the lowest index among equals.

    Where at least two classes lie within 2·guard of the highest score, all of those are close.
    """

    guard: float | None = None

    def __str__(self) -> str:
        return "top1"

    def _votes(self, scores: Float[Tensor, "B N K"], guard: float) -> Votes:
        cast = torch.nn.functional.one_hot(first_argmax(scores), scores.shape[-1]).bool()
        near = scores >= scores.amax(dim=-1, keepdim=True) - 2 * guard
        return Votes(cast=cast, close=near & (near.sum(dim=-1, keepdim=True) > 1))

    def capacity(self, num_classes: int) -> int:
        """One vote, whatever the number of classes."""
        return 1

    def margins(self, logits: Float[Tensor, "B N K"]) -> Float[Tensor, "B N K"]:
        """The logit less the largest of the others."""
        first, second = logits.topk(2, dim=-1).values.unbind(dim=-1)
        best = first_argmax(logits.detach())[..., None]
        return (logits - first[..., None]).scatter(-1, best, (first - second)[..., None])

    def soft(self, logits: Float[Tensor, "B N K"]) -> Float[Tensor, "B N K"]:
        """The softmax probabilities."""
        return logits.softmax(dim=-1)

    def sharp(self, logits: Float[Tensor, "B N K"]) -> Float[Tensor, "B N K"]:
        """The softmax of four times the logits: an ablation that knows little votes all the same, for some class."""
        return (4 * logits).softmax(dim=-1)


def excess(num_classes: int) -> float:
    """The most by which a float32 softmax over K classes, and a threshold rounded to float32, exceed 1 together.

    With ε = 2^-24: K - 1 additions of positive terms err by (K - 1)·ε of their sum, each quotient by ε (2ε by way of a
    reciprocal), each exponential computed twice by a few ε, the threshold by ε. Twice (K + 8)·ε covers them.
    """
    return (num_classes + 8) * 2.0**-23


def log_odds(logits: Float[Tensor, "... K"]) -> Float[Tensor, "... K"]:
    """log(p_k / (1 - p_k)) of the softmax p of the logits, accurate and with a gradient where p_k rounds to 0 or 1.

    For the largest logit, 1 - p_k is summed from the other classes; for the rest p_k ≤ 1/2 and nothing cancels.
    """
    top = logits.argmax(dim=-1, keepdim=True)
    others = logits.scatter(-1, top, -torch.inf).logsumexp(dim=-1, keepdim=True)
    log_p = logits.log_softmax(dim=-1)
    rest = log_p.scatter(-1, top, -1.0)  # keeps log1p finite where the value is not used
    below = rest - torch.log1p(-rest.exp())
    return below.scatter(-1, top, logits.gather(-1, top) - others)
