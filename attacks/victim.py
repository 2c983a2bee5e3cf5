"""What an attack sees of a classifier: an objective to descend, and the prediction of every iterate.

Two views of a smoothed classifier that must agree: `WholeVictim` scores all ablations of the attacked image and knows
no geometry, and serves any other classifier too; `TouchedVictim` re-scores only the ablations that the patch touches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustpatch.smoothing import SmoothedClassifier
from robustpatch.touched import Touched
from robustpatch.voting import Voting, first_argmax


@runtime_checkable
class Victim(Protocol):
    """P attacked images, one a row. `cost` [P] is the number of evaluations of one forward pass."""

    @property
    def cost(self) -> Int[Tensor, " P"]: ...

    def __call__(self, x_adv: Float[Tensor, "P C H W"]) -> tuple[Float[Tensor, " P"], Int[Tensor, " P"]]:
        """The objective, below zero about when the attack succeeds, with its gradient; and the prediction."""
        ...

    def keep(self, rows: Tensor) -> Victim:
        """The same for some of the rows."""
        ...


@dataclass(frozen=True)
class WholeVictim:
    """Any classifier, scored whole. For a smoothed one, the gap in soft votes over all its ablations."""

    model: torch.nn.Module
    y: Int[Tensor, " P"]
    cost: Int[Tensor, " P"]

    @classmethod
    def of(cls, model: torch.nn.Module, x: Tensor, y: Tensor) -> WholeVictim:
        n = model.ablation.count(*x.shape[2:]) if isinstance(model, SmoothedClassifier) else 1
        return cls(model, y, torch.full_like(y, n))

    def keep(self, rows: Tensor) -> WholeVictim:
        return replace(self, y=self.y[rows], cost=self.cost[rows])

    def __call__(self, x_adv: Float[Tensor, "P C H W"]) -> tuple[Float[Tensor, " P"], Int[Tensor, " P"]]:
        if isinstance(self.model, SmoothedClassifier):
            soft, counts = _counts(self.model.voting, self.model.logits(x_adv), self.model.guard, None)
            return gap(soft, self.y), first_argmax(counts)
        logits = self.model(x_adv).float()
        return gap(logits, self.y), first_argmax(logits.detach())


@dataclass(frozen=True)
class TouchedVictim:
    """A smoothed classifier of which only the touched ablations are scored again; the rest keep their clean votes."""

    model: SmoothedClassifier
    y: Int[Tensor, " P"]
    index: Int[Tensor, "P A"]
    valid: Bool[Tensor, "P A"]
    untouched: Int[Tensor, "P K"]

    @classmethod
    def of(
        cls,
        model: SmoothedClassifier,
        y: Tensor,
        cast: Bool[Tensor, "P N K"],
        touched: Touched,
        placement: Int[Tensor, "P count"],
    ) -> TouchedVictim:
        """`cast` are the clean votes of each row's image, `placement` the numbers of its rectangles' placements."""
        member = touched.member(touched.set_of_placement.to(placement.device)[placement]).any(dim=1)
        valid, index = member.sort(dim=1, descending=True, stable=True)
        most = max(1, int(member.sum(dim=1).max()))  # with wide strides a patch may touch none: `valid` says so
        untouched = (cast & ~member[:, :, None]).sum(dim=1, dtype=torch.int32)
        return cls(model, y, index[:, :most], valid[:, :most], untouched)

    @property
    def cost(self) -> Int[Tensor, " P"]:
        return torch.full_like(self.y, self.index.shape[1])

    def keep(self, rows: Tensor) -> TouchedVictim:
        return TouchedVictim(self.model, self.y[rows], self.index[rows], self.valid[rows], self.untouched[rows])

    def __call__(self, x_adv: Float[Tensor, "P C H W"]) -> tuple[Float[Tensor, " P"], Int[Tensor, " P"]]:
        logits = self.model.logits(x_adv, self.index)
        soft, counts = _counts(self.model.voting, logits, self.model.guard, self.valid)
        return gap(soft + self.untouched, self.y), first_argmax(counts + self.untouched)


def gap(scores: Float[Tensor, "P K"], y: Int[Tensor, " P"]) -> Float[Tensor, " P"]:
    """The score of y less that of the strongest rival."""
    own = scores.gather(1, y[:, None])[:, 0]
    return own - scores.scatter(1, y[:, None], -torch.inf).amax(dim=1)


def _counts(voting: Voting, logits: Tensor, guard: float, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Soft votes [P,K], differentiable, and votes as the classifier casts them [P,K]."""
    cast = voting.votes(logits.detach().softmax(dim=-1), guard).cast
    soft = torch.sigmoid(voting.margins(logits))
    if valid is not None:
        cast, soft = cast & valid[..., None], soft * valid[..., None]
    return soft.sum(dim=1), cast.sum(dim=1, dtype=torch.int32)
