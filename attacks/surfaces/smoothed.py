"""A smoothed classifier as an attack sees it: votes of ablations, few of which a patch touches, and its certificate.

Two views that must agree: `WholeVotesView` scores all ablations of the attacked image and knows no geometry;
`TouchedView` scores only those that the patch touches.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attacks.surfaces.base import (
    Attacked,
    Objective,
    OpenPlacements,
    Surface,
    View,
    WholeView,
    answered,
    surface_of,
    value_of,
    view_as,
    whole_view,
)
from attacks.surfaces.clean import votes_of
from attacks.surfaces.touched import OfTouched, sums
from robustpatch.ablations.touched import Touched
from robustpatch.certificates.margins import rival_margins
from robustpatch.classifiers.base import CertifiedClassifier
from robustpatch.classifiers.isolation import certify, predict
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.threats.base import Patches
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.silence import has_score
from robustpatch.voting.votes import UNITS, first_argmax


@dataclass(frozen=True)
class WholeVotesView(WholeView):
    """A smoothed classifier over all its ablations. `objective`:

    - "votes": the soft votes (or summed scores) of y less those of the rival; below zero about when it succeeds.
    - "mean-softmax": log of the mean over ablations of the softmax of y (less that of the rival, if one is named): the
      cross-entropy that Levine & Feizi's release climbs.
    """

    classifier: SmoothedClassifier

    def __call__(self, x_adv: Float[Tensor, "P C H W"]) -> tuple[Float[Tensor, " P"], Int[Tensor, " P"]]:
        soft, counts, heard = sums(self.classifier, self.classifier.logits(x_adv.clone()), None, self.objective)
        return self._value(soft), torch.where(heard, answered(counts, self.y, self.rank), -1)


@whole_view.register
def _(
    classifier: SmoothedClassifier,
    x: Tensor,
    y: Tensor,
    rival: Tensor | None = None,
    objective: Objective = "votes",
    rank: int = 1,
) -> View:
    return view_as(WholeVotesView, classifier, x, y, rival, objective, rank)


@dataclass(frozen=True)
class TouchedView(OfTouched):
    """A smoothed classifier of which only the touched ablations are scored again; the rest keep their clean votes.

    `untouched` are those votes, `untouched_soft` what they add to the objective, for which see `WholeVotesView`.
    """

    classifier: SmoothedClassifier
    untouched: Int[Tensor, "P K"]
    untouched_soft: Float[Tensor, "P K"]
    objective: Objective = "votes"

    _ROWS: ClassVar[tuple[str, ...]] = (*OfTouched._ROWS, "untouched", "untouched_soft")

    @classmethod
    def of(
        cls,
        classifier: SmoothedClassifier,
        y: Tensor,
        cast: Bool[Tensor, "P N K"] | Int[Tensor, "P N K"],
        touched: Touched,
        placement: Int[Tensor, "P count"],
        rival: Tensor | None = None,
        *,
        scores: Float[Tensor, "P N K"] | None = None,
        reach: Bool[Tensor, "P K"] | None = None,
        rank: int = 1,
    ) -> TouchedView:
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
        more = {"untouched": untouched, "untouched_soft": soft, "rank": rank}
        return cls(**rows, **more, classifier=classifier, objective="votes" if scores is None else "mean-softmax")

    def __call__(self, x_adv: Float[Tensor, "P C H W"]) -> tuple[Float[Tensor, " P"], Int[Tensor, " P"]]:
        logits = self.classifier.logits(x_adv.clone(), self.index.clone())
        soft, counts, heard = sums(self.classifier, logits, self.valid, self.objective)
        if self.objective == "votes":
            soft = soft + self.untouched_soft
        else:
            soft = torch.logaddexp(soft, self.untouched_soft.log())
        value = value_of(soft, self.y, self.rival, self.objective, self.reach, self.rank)
        some_left = self.valid.sum(dim=1) < self.classifier.ablation.count(*x_adv.shape[2:])
        return value, torch.where(heard | some_left, answered(counts + self.untouched, self.y, self.rank), -1)


class WholeVotes(Surface):
    """A smoothed classifier of which all ablations are scored."""

    blind = False

    def __init__(self, classifier: SmoothedClassifier, attacked: Attacked) -> None:
        super().__init__(classifier, attacked)
        self.enough = self.forward_cost / 5  # votes


class TouchedVotes(Surface):
    """A classifier that decides by the votes of `voting`'s ablations, of which the touched ones alone are scored again.

    `votes`: what the ablations contribute on the clean images. `reach`: Bool[B,S,K], the classes that the certificate
    leaves in reach of one patch, by touched set; None where nothing is known. Climbs towards the strongest class seek
    it among these.
    """

    guides = True
    blind = False
    home: ClassVar[type[CertifiedClassifier]] = SmoothedClassifier
    """The class whose `predict` and `certify` are what the votes say."""

    def __init__(self, classifier: CertifiedClassifier, voting: SmoothedClassifier, attacked: Attacked) -> None:
        self.certifier, self.voting = classifier, voting
        self.votes = votes_of(classifier, self.voting, attacked.x)
        self.reach: Bool[Tensor, "B S K"] | None = None
        super().__init__(classifier, attacked)
        self.enough = self.forward_cost / 5  # votes

    def _clean(self) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
        """Read off the known votes; asked where `predict` is not the votes', or may abstain for lack of any."""
        if self.certifier.overridden(self.home, "predict"):
            return super()._clean()
        prediction = first_argmax(self._counts())
        none = (self.votes.counts == 0).all(dim=1)
        if bool(none.any()):
            prediction[none] = predict(self.certifier, self.attacked.x[none])
        return prediction, torch.full_like(self.attacked.y, self.predict_cost)

    def _counts(self) -> Int[Tensor, "B K"]:
        return self.votes.counts

    @cached_property
    def touched(self) -> Touched:
        """Which ablations each placement touches."""
        return self.voting.ablation.touched(self.attacked.threat, *self.attacked.size)

    @property
    def climb_cost(self) -> int:
        return self.voting.ablation.affected(self.attacked.threat, *self.attacked.size)

    @property
    def asking_cost(self) -> int:
        # Where the certificate is the votes', those that are known say what is open.
        return self.forward_cost if self.certifier.overridden(self.home, "certify") else 0

    @cached_property
    def _scores(self) -> Float[Tensor, "B N K"]:
        self.evaluations += self.forward_cost
        with torch.no_grad():
            # Of "mean-softmax", whatever votes are made of.
            scores = self.voting.logits(self.attacked.x.clone()).softmax(dim=-1)
        return torch.where(has_score(scores), scores, 0)

    def _reached(self, image: Tensor, placement: Tensor) -> Bool[Tensor, "P K"] | None:
        if self.reach is None:
            return None
        return self.reach[image, self.touched.set_of_placement.to(placement.device)[placement[:, 0]]]

    def view(
        self, image: Tensor, placement: Tensor, rival: Tensor | None = None, objective: Objective = "votes"
    ) -> View:
        scores = self._scores[image] if objective == "mean-softmax" else None
        y, cast = self.attacked.y[image], self.votes.cast[image]
        more = {"scores": scores, "reach": self._reached(image, placement), "rank": self.attacked.rank}
        return TouchedView.of(self.voting, y, cast, self.touched, placement, rival, **more)

    def _rival_margins(self, single: Patches, touched: Touched) -> list[Int[Tensor, "S K"]] | None:
        """How far y stays ahead of each rival whatever a single patch does at each touched set, of each image: below
        zero where the attacker may raise it above y. None where the classifier proves nothing, or in a way of its own.
        """
        if self.certifier.overridden(self.home, "certify"):
            return None
        y, rows = self.attacked.y, range(len(self.attacked.y))
        return [rival_margins(self.votes.of(slice(i, i + 1)), y[i : i + 1], touched)[0] for i in rows]

    def _placement_margin(self) -> Tensor | None:
        """The certificate's map, of one that proves in a way of its own."""
        self.evaluations += self.asking_cost
        return certify(self.certifier, self.attacked.x, self.attacked.threat).placement_margin

    def open_placements(self, shuffled: list[Tensor], rivals: int) -> list[OpenPlacements]:
        threat, rank = self.attacked.threat, self.attacked.rank
        single = PatchThreat(threat.height, threat.width)
        touched = self.voting.ablation.touched(single, *self.attacked.size)
        known = self._rival_margins(single, touched)
        if known is None:
            return self._by_map(shuffled)
        of_placement = touched.set_of_placement.to(self.attacked.x.device)
        found, reach = [], []
        for margins, order in zip(known, shuffled, strict=True):
            reach.append(margins < 0)
            most = min(max(rivals, rank), margins.shape[1] - 1)
            least, cheapest = margins.topk(most, dim=1, largest=False, sorted=True)
            margin = least[of_placement, min(rank, most) - 1]  # of the last rival that must come before y
            least, cheapest = least[:, :rivals], cheapest[:, :rivals]
            if rank > 1:
                cheapest = torch.full_like(cheapest, -1)
            if threat.count == 1:
                cheapest = cheapest.masked_fill(least >= 0, -1)
            order = order[margin[order].argsort(stable=True)]
            if threat.count == 1:
                order = order[margin[order] < 0]
            sets = of_placement[order]
            found.append(OpenPlacements(order, cheapest[sets], sets))
        if reach and threat.count == 1:
            self.reach = torch.stack(reach)
        return found

    def _by_map(self, shuffled: list[Tensor]) -> list[OpenPlacements]:
        closed = self._placement_margin()
        found = []
        for i, order in enumerate(shuffled):
            if closed is not None:
                order = order[closed[i][order].argsort(stable=True)]
                order = order[closed[i][order] < 0]
            found.append(OpenPlacements.in_order(order))
        return found


@surface_of.register
def _(classifier: SmoothedClassifier, attacked: Attacked, pruned: bool) -> Surface:
    return TouchedVotes(classifier, classifier, attacked) if pruned else WholeVotes(classifier, attacked)
