"""Views of which only the ablations that the patch touches are scored; what the views of voting classifiers share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attacks.surfaces.views import Objective, View
from robustpatch.ablations.touched import Touched
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.voting.rules import Voting
from robustpatch.voting.silence import has_score
from robustpatch.voting.votes import Scored, Votes

T = TypeVar("T", bound="OfTouched")


@dataclass(frozen=True, kw_only=True)
class OfTouched(View):
    """Attacked images of which only the ablations that the patch touches are scored.

    Attributes:
        index: Int[P,A], the ablations touched. valid: Bool[P,A], False where a row is filled up to its neighbours.
        reach: Bool[P,K], the classes that can win at all, among which a rival that is not named is sought.
    """

    index: Int[Tensor, "P A"]
    valid: Bool[Tensor, "P A"]
    reach: Bool[Tensor, "P K"]

    @staticmethod
    def rows(
        y: Int[Tensor, " P"],
        touched: Sequence[Touched],
        placement: Int[Tensor, "P count"],
        classes: int,
        rival: Int[Tensor, " P"] | None = None,
        reach: Bool[Tensor, "P K"] | None = None,
    ) -> dict[str, Any]:
        """The attributes, for patches at these placements, by number; `touched` is what each of them touches. A row of
        none in `reach`, and None, stand for every class.
        """
        each = zip(touched, placement.unbind(dim=1), strict=True)
        members = [one.member(one.set_of_placement.to(numbers.device)[numbers]) for one, numbers in each]
        member = torch.stack(members).any(dim=0)
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

    def towards(self: T, target: int | Int[Tensor, " P"]) -> T:
        return replace(super().towards(target), reach=torch.ones_like(self.reach))  # y has to be left behind as well

    @property
    def cost(self) -> Int[Tensor, " P"]:
        return self.valid.sum(dim=1).clamp(min=1)  # not what fills a row up to the width of its neighbours


def sums(
    classifier: SmoothedClassifier, logits: Tensor, valid: Tensor | None, objective: Objective = "votes"
) -> tuple[Float[Tensor, "P K"], Int[Tensor, "P K"], Bool[Tensor, " P"]]:
    """Over the ablations scored: what the objective is made of, differentiable, the votes cast, and whether any was
    heard. Those with a score that is no number are not, as in the classifier's `predict`.
    """
    soft, votes, heard = soft_votes(classifier, logits)
    said = heard if valid is None else heard & valid[..., None]
    counts = replace(votes, cast=votes.cast.masked_fill(~said, 0)).counts
    if objective == "votes":
        total = torch.where(said, soft, 0).sum(dim=1)
    else:
        log = torch.where(heard, logits, 0).log_softmax(dim=-1)  # 0 · NaN is NaN: what is not heard must not reach it
        total = log.masked_fill(~said, -1e30).logsumexp(dim=1)
    return total, counts, said.flatten(1).any(dim=1)


def soft_votes(
    classifier: SmoothedClassifier, logits: Float[Tensor, "P n K"]
) -> tuple[Float[Tensor, "P n K"], Votes | Scored, Bool[Tensor, "P n 1"]]:
    """A differentiable stand-in in [0, 1] for the votes that the rule makes of these logits, the votes themselves, and
    whether there is a score to make them of.
    """
    voting: Voting = classifier.voting
    scores = voting.scores(logits.detach())
    votes, heard = voting.votes(scores, classifier.guard_on(logits.device)), has_score(scores)
    logits = torch.where(heard, logits, 0)
    if isinstance(votes, Scored):
        return voting.soft(logits), votes, heard
    margins = voting.margins(logits)
    # The sigmoid of a large margin is 1 and its gradient 0: a sure vote is less by what is missing from it.
    return torch.where(margins > 0, 1 - torch.sigmoid(-margins), torch.sigmoid(margins)), votes, heard
