"""Views of which only the ablations that the patch touches are scored; what the views of smoothed classifiers share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attacks.surfaces.base import Objective, Towards, View
from robustpatch.ablations.touched import Touched
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.voting.rules import Voting
from robustpatch.voting.silence import has_score
from robustpatch.voting.votes import Scored, Votes

T = TypeVar("T", bound="OfTouched")


@dataclass(frozen=True)
class OfTouched:
    """P attacked images of which only the ablations that the patch touches are scored, a row each.

    Attributes:
        y: Int[P]. rival: Int[P], the class to be raised, or -1: the strongest at each step, among those in `reach`.
        index: Int[P,A], the ablations touched. valid: Bool[P,A], False where a row is filled up to its neighbours.
        reach: Bool[P,K], the classes that can win at all. rank: how many classes must come before y.
    """

    y: Int[Tensor, " P"]
    rival: Int[Tensor, " P"]
    index: Int[Tensor, "P A"]
    valid: Bool[Tensor, "P A"]
    reach: Bool[Tensor, "P K"]
    rank: int

    _ROWS: ClassVar[tuple[str, ...]] = ("y", "rival", "reach")
    _PADDED: ClassVar[tuple[str, ...]] = ("index", "valid")

    @staticmethod
    def rows(
        y: Int[Tensor, " P"],
        touched: Touched,
        placement: Int[Tensor, "P count"],
        classes: int,
        rival: Int[Tensor, " P"] | None = None,
        reach: Bool[Tensor, "P K"] | None = None,
    ) -> dict[str, Tensor]:
        """The attributes, for rectangles at these placements, by number. A row of none in `reach`, and None, stand for
        every class.
        """
        member = touched.member(touched.set_of_placement.to(placement.device)[placement]).any(dim=1)
        valid, index = member.sort(dim=1, descending=True, stable=True)
        most = max(1, int(member.sum(dim=1).max()))  # with wide strides a patch may touch none: `valid` says so
        reach = torch.zeros(len(y), classes, dtype=torch.bool, device=y.device) if reach is None else reach
        return {
            "y": y,
            "rival": torch.full_like(y, -1) if rival is None else rival,
            "index": index[:, :most],
            "valid": valid[:, :most],
            "reach": reach | ~reach.any(dim=1, keepdim=True),
        }

    @property
    def cost(self) -> Int[Tensor, " P"]:
        return self.valid.sum(dim=1).clamp(min=1)  # not what fills a row up to the width of its neighbours

    def keep(self: T, rows: Tensor) -> T:
        return replace(self, **{name: getattr(self, name)[rows] for name in (*self._ROWS, *self._PADDED)})

    def join(self: T, other: T) -> T:
        both = {name: [getattr(self, name), getattr(other, name)] for name in (*self._ROWS, *self._PADDED)}
        for name in self._PADDED:
            most = max(part.shape[1] for part in both[name])
            both[name] = [torch.nn.functional.pad(part, (0, most - part.shape[1])) for part in both[name]]
        return replace(self, **{name: torch.cat(parts) for name, parts in both.items()})

    def __call__(self, x_adv: Float[Tensor, "P C H W"]) -> tuple[Float[Tensor, " P"], Int[Tensor, " P"]]:
        raise NotImplementedError

    def towards(self, target: int) -> View:
        return Towards(replace(self, y=torch.full_like(self.y, target)))


def sums(
    classifier: SmoothedClassifier, logits: Tensor, valid: Tensor | None, objective: Objective
) -> tuple[Float[Tensor, "P K"], Int[Tensor, "P K"], Bool[Tensor, " P"]]:
    """Over the ablations scored: what the objective is made of, differentiable, the votes cast, and whether any was
    heard. Those with a score that is no number are not, as in the classifier's `predict`.
    """
    scores = classifier.voting.scores(logits.detach())
    votes, heard = classifier.voting.votes(scores, classifier.guard_on(logits.device)), has_score(scores)
    logits = torch.where(heard, logits, 0)  # 0 · NaN is NaN: what is not heard is not to reach the sum
    heard = heard if valid is None else heard & valid[..., None]
    counts = replace(votes, cast=votes.cast.masked_fill(~heard, 0)).counts
    if objective == "votes":
        soft = torch.where(heard, soft_votes(classifier.voting, logits, votes), 0).sum(dim=1)
    else:
        soft = logits.log_softmax(dim=-1).masked_fill(~heard, -1e30).logsumexp(dim=1)
    return soft, counts, heard.flatten(1).any(dim=1)


def soft_votes(voting: Voting, logits: Float[Tensor, "P n K"], votes: Votes | Scored) -> Float[Tensor, "P n K"]:
    """A differentiable stand-in for the `votes` that the rule makes of these logits, in [0, 1]."""
    if isinstance(votes, Scored):
        return voting.soft(logits)
    margins = voting.margins(logits)
    # The sigmoid of a large margin is 1 and its gradient 0: a sure vote is less by what is missing from it.
    return torch.where(margins > 0, 1 - torch.sigmoid(-margins), torch.sigmoid(margins))
