"""Views: how attacked images look to an attack. A differentiable objective, and what the classifier then answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from functools import singledispatch
from typing import Literal, TypeVar, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustpatch.certificates.top_k import ranks
from robustpatch.classifiers.base import Classifier
from robustpatch.errors import InvalidInput
from robustpatch.voting.votes import first_argmax

Objective = Literal["votes", "mean-softmax"]
V = TypeVar("V", bound="View")


def check_objective(objective: str) -> None:
    """Refuse a name that is no objective."""
    if objective not in get_args(Objective):
        raise InvalidInput(f"attack objective is {objective!r}; use one of {', '.join(get_args(Objective))}")


@dataclass(frozen=True, kw_only=True)
class View(ABC):
    """P attacked images, one a row: every field that is a tensor has a row for each.

    Attributes:
        y: Int[P], the class to move away from. rival: Int[P], the class to be raised against it, or -1: the one of that
            `rank` (1: the strongest) at each step.
        objective: "votes", what y has less what the rival has, below zero about when the attack succeeds; or
            "mean-softmax", the log of the softmax of y (less that of the rival, if one is named).
        sign: -1 where y is the class to be brought about.
    """

    y: Int[Tensor, " P"]
    rival: Int[Tensor, " P"]
    objective: Objective = "votes"
    rank: int = 1
    sign: int = 1

    @property
    @abstractmethod
    def cost(self) -> Int[Tensor, " P"]:
        """Evaluations of one forward pass."""

    @abstractmethod
    def __call__(self, x_adv: Float[Tensor, "P C H W"]) -> tuple[Float[Tensor, " P"], Int[Tensor, " P"]]:
        """The objective, the smaller the nearer to success, with its gradient; and the prediction (where several
        classes must come before y, y as long as fewer do).
        """

    def _rows(self) -> dict[str, Tensor]:
        parts = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: part for name, part in parts.items() if isinstance(part, Tensor)}

    def keep(self: V, rows: Tensor) -> V:
        """The same for some of the rows."""
        return replace(self, **{name: part[rows] for name, part in self._rows().items()})

    def join(self: V, other: V) -> V:
        """Both, the rows of `other` last; the shorter rows filled up with zeros."""
        theirs, both = other._rows(), {}
        for name, own in self._rows().items():
            pair = [own, theirs[name]]
            if own.ndim == 2:
                most = max(part.shape[1] for part in pair)
                pair = [torch.nn.functional.pad(part, (0, most - part.shape[1])) for part in pair]
            both[name] = torch.cat(pair)
        return replace(self, **both)

    def towards(self: V, target: int) -> V:
        """The same with the objective of bringing about that class."""
        return replace(self, y=torch.full_like(self.y, target), sign=-1)

    def value(self, soft: Float[Tensor, "P K"], reach: Tensor | None = None) -> Float[Tensor, " P"]:
        """The objective, of what each class has. A rival that is not named is sought among the classes in `reach`."""
        own, named = (soft.gather(1, k[:, None])[:, 0] for k in (self.y, self.rival.clamp(min=0)))
        if self.objective == "votes" or self.rank > 1:
            others = soft.scatter(1, self.y[:, None], -torch.inf)
            others = others if reach is None else others.masked_fill(~reach, -torch.inf)
            most = min(self.rank, others.shape[1] - 1)
            other = others.topk(most, dim=1).values[:, -1] if self.rank > 1 else others.amax(dim=1)
        else:
            other = torch.zeros_like(own)
        return self.sign * (own - torch.where(self.rival >= 0, named, other))

    def answer(self, counts: Tensor) -> Int[Tensor, " P"]:
        """The class of the highest count; where several must come before y, y as long as fewer do."""
        first = first_argmax(counts)
        return first if self.rank == 1 else torch.where(ranks(counts, self.y) < self.rank, self.y, first)


@dataclass(frozen=True, kw_only=True)
class WholeView(View):
    """Any classifier, scored whole, by its outputs, of which "mean-softmax" is the cross-entropy that Chiang et al.
    climb. `forward_cost`: evaluations of scoring one image.
    """

    classifier: Classifier
    forward_cost: int

    @property
    def cost(self) -> Int[Tensor, " P"]:
        return torch.full_like(self.y, self.forward_cost)

    def __call__(self, x_adv: Float[Tensor, "P C H W"]) -> tuple[Float[Tensor, " P"], Int[Tensor, " P"]]:
        logits = self.classifier.outputs(x_adv).float()
        soft = logits if self.objective == "votes" else logits.log_softmax(dim=1)
        return self.value(soft), self.answer(logits.detach())


@singledispatch
def whole_view_class(classifier: Classifier) -> type[WholeView]:
    """The class of views that score this classifier whole and lean on nothing; by default, of its outputs."""
    return WholeView


def whole_view(
    classifier: Classifier,
    x: Float[Tensor, "P C H W"],
    y: Int[Tensor, " P"],
    rival: Int[Tensor, " P"] | None = None,
    objective: Objective = "votes",
    rank: int = 1,
) -> WholeView:
    """A view of these images that scores the classifier whole and leans on nothing."""
    return whole_view_class(classifier)(
        y=y,
        rival=torch.full_like(y, -1) if rival is None else rival,
        objective=objective,
        rank=rank,
        classifier=classifier,
        forward_cost=classifier.cost(x.shape[2], x.shape[3])[0],
    )
