"""What an attack sees of a classifier: an objective to descend, and the prediction of every iterate.

Two views of a smoothed classifier that must agree: `WholeVictim` scores all ablations of the attacked image and knows
no geometry, and serves any other classifier too; `TouchedVictim` re-scores only the ablations that the patch touches
(and so does `attacks.surfaces.patchguard` of one behind PatchGuard).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol, TypeVar, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attacks.base import evaluations, outputs
from robustpatch.ablations.touched import Touched
from robustpatch.classifiers.lending import lent
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.errors import InvalidInput
from robustpatch.voting.rules import Voting
from robustpatch.voting.silence import has_score
from robustpatch.voting.votes import UNITS, Scored, Votes, first_argmax

Objective = Literal["votes", "mean-softmax"]
V = TypeVar("V", bound="Victim")
T = TypeVar("T", bound="OfTouched")


def check_objective(objective: str) -> None:
    """Refuse a name that is no objective."""
    if objective not in get_args(Objective):
        raise InvalidInput(f"attack objective is {objective!r}; use one of {', '.join(get_args(Objective))}")


@runtime_checkable
class Victim(Protocol):
    """P attacked images, one a row. `cost` [P] is the number of evaluations of one forward pass."""

    @property
    def cost(self) -> Int[Tensor, " P"]: ...

    def __call__(self, x_adv: Float[Tensor, "P C H W"]) -> tuple[Float[Tensor, " P"], Int[Tensor, " P"]]:
        """The objective, the smaller the nearer to success, with its gradient; and the prediction."""
        ...

    def keep(self: V, rows: Tensor) -> V:
        """The same for some of the rows."""
        ...

    def join(self: V, other: V) -> V:
        """Both, the rows of `other` last."""
        ...


@dataclass(frozen=True)
class WholeVictim:
    """Any classifier, scored whole; a smoothed one over all its ablations.

    `rival` is the class to be raised against y, or -1: the strongest at each step. `objective`:

    - "votes": the soft votes (or summed scores) of y less those of the rival; below zero about when it succeeds.
      For a classifier that is not smoothed, the same of its outputs.
    - "mean-softmax": log of the mean over ablations of the softmax of y (less that of the rival, if one is named): the
      cross-entropy that Levine & Feizi's release climbs. Without ablations, Chiang et al.'s.
    """

    model: torch.nn.Module
    y: Int[Tensor, " P"]
    rival: Int[Tensor, " P"]
    cost: Int[Tensor, " P"]
    objective: Objective = "votes"

    @classmethod
    def of(
        cls, model: torch.nn.Module, x: Tensor, y: Tensor, rival: Tensor | None = None, objective: Objective = "votes"
    ) -> WholeVictim:
        n, _ = evaluations(model, x)
        rival = torch.full_like(y, -1) if rival is None else rival
        return cls(model, y, rival, torch.full_like(y, n), objective)

    def keep(self, rows: Tensor) -> WholeVictim:
        return replace(self, y=self.y[rows], rival=self.rival[rows], cost=self.cost[rows])

    def join(self, other: WholeVictim) -> WholeVictim:
        parts = {name: torch.cat([getattr(self, name), getattr(other, name)]) for name in ("y", "rival", "cost")}
        return replace(self, **parts)

    def __call__(self, x_adv: Float[Tensor, "P C H W"]) -> tuple[Float[Tensor, " P"], Int[Tensor, " P"]]:
        if isinstance(self.model, SmoothedClassifier):
            soft, counts, heard = _sums(self.model, self.model.logits(lent(x_adv)), None, self.objective)
            value = _value(soft, self.y, self.rival, self.objective)
            return value, torch.where(heard, first_argmax(counts), -1)
        logits = outputs(self.model, x_adv).float()
        soft = logits if self.objective == "votes" else logits.log_softmax(dim=1)
        return _value(soft, self.y, self.rival, self.objective), first_argmax(logits.detach())


@dataclass(frozen=True)
class OfTouched:
    """P attacked images of which only the ablations that the patch touches are scored, a row each.

    Attributes:
        y: Int[P]. rival: Int[P], the class to be raised, or -1: the strongest at each step, among those in `reach`.
        index: Int[P,A], the ablations touched. valid: Bool[P,A], False where a row is filled up to its neighbours.
        reach: Bool[P,K], the classes that can win at all.
    """

    y: Int[Tensor, " P"]
    rival: Int[Tensor, " P"]
    index: Int[Tensor, "P A"]
    valid: Bool[Tensor, "P A"]
    reach: Bool[Tensor, "P K"]

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


@dataclass(frozen=True)
class TouchedVictim(OfTouched):
    """A smoothed classifier of which only the touched ablations are scored again; the rest keep their clean votes.

    `untouched` are those votes, `untouched_soft` what they add to the objective, for which see `WholeVictim`.
    """

    model: SmoothedClassifier
    untouched: Int[Tensor, "P K"]
    untouched_soft: Float[Tensor, "P K"]
    objective: Objective = "votes"

    _ROWS: ClassVar[tuple[str, ...]] = (*OfTouched._ROWS, "untouched", "untouched_soft")

    @classmethod
    def of(
        cls,
        model: SmoothedClassifier,
        y: Tensor,
        cast: Bool[Tensor, "P N K"] | Int[Tensor, "P N K"],
        touched: Touched,
        placement: Int[Tensor, "P count"],
        rival: Tensor | None = None,
        *,
        scores: Float[Tensor, "P N K"] | None = None,
        reach: Bool[Tensor, "P K"] | None = None,
    ) -> TouchedVictim:
        """`cast` are the clean votes of each row's image, or the units of its scores, `placement` the numbers of its
        rectangles' placements.

        With the clean `scores` the objective is "mean-softmax", else "votes". For `reach` see `OfTouched.rows`.
        """
        rows = OfTouched.rows(y, touched, placement, cast.shape[2], rival, reach)
        member = torch.zeros(cast.shape[:2], dtype=torch.bool, device=cast.device)
        member.scatter_(1, rows["index"], rows["valid"])
        kind, unit = (torch.int32, 1) if cast.dtype == torch.bool else (torch.int64, UNITS)
        untouched = cast.masked_fill(member[:, :, None], 0).sum(dim=1, dtype=kind)
        soft = untouched.float() / unit if scores is None else scores.masked_fill(member[:, :, None], 0).sum(dim=1)
        objective: Objective = "votes" if scores is None else "mean-softmax"
        return cls(**rows, model=model, untouched=untouched, untouched_soft=soft, objective=objective)

    def __call__(self, x_adv: Float[Tensor, "P C H W"]) -> tuple[Float[Tensor, " P"], Int[Tensor, " P"]]:
        logits = self.model.logits(lent(x_adv), lent(self.index))
        soft, counts, heard = _sums(self.model, logits, self.valid, self.objective)
        if self.objective == "votes":
            soft = soft + self.untouched_soft
        else:
            soft = torch.logaddexp(soft, self.untouched_soft.log())
        value = _value(soft, self.y, self.rival, self.objective, self.reach)
        some_left = self.valid.sum(dim=1) < self.model.ablation.count(*x_adv.shape[2:])
        return value, torch.where(heard | some_left, first_argmax(counts + self.untouched), -1)


def _sums(
    model: SmoothedClassifier, logits: Tensor, valid: Tensor | None, objective: Objective
) -> tuple[Float[Tensor, "P K"], Int[Tensor, "P K"], Bool[Tensor, " P"]]:
    """Over the ablations scored: what the objective is made of, differentiable, the votes cast, and whether any was
    heard. Those with a score that is no number are not, as in the model's `predict`.
    """
    scores = model.voting.scores(logits.detach())
    votes, heard = model.voting.votes(scores, model.guard_on(logits.device)), has_score(scores)
    logits = torch.where(heard, logits, 0)  # 0 · NaN is NaN: what is not heard is not to reach the sum
    heard = heard if valid is None else heard & valid[..., None]
    counts = replace(votes, cast=votes.cast.masked_fill(~heard, 0)).counts
    if objective == "votes":
        soft = torch.where(heard, soft_votes(model.voting, logits, votes), 0).sum(dim=1)
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


def _value(
    soft: Tensor, y: Tensor, rival: Tensor, objective: Objective, reach: Tensor | None = None
) -> Float[Tensor, " P"]:
    if objective == "votes":
        return gap(soft, y, rival, reach)
    own, named = (soft.gather(1, k[:, None])[:, 0] for k in (y, rival.clamp(min=0)))
    return own - torch.where(rival >= 0, named, 0.0)


def gap(
    soft: Float[Tensor, "P K"], y: Int[Tensor, " P"], rival: Int[Tensor, " P"], reach: Bool[Tensor, "P K"] | None
) -> Float[Tensor, " P"]:
    """What y has less what the rival has, the strongest of those in `reach` where none is named."""
    own, named = (soft.gather(1, k[:, None])[:, 0] for k in (y, rival.clamp(min=0)))
    others = soft.scatter(1, y[:, None], -torch.inf)
    strongest = (others if reach is None else others.masked_fill(~reach, -torch.inf)).amax(dim=1)
    return own - torch.where(rival >= 0, named, strongest)
