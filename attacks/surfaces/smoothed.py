"""A smoothed classifier as an attack sees it: votes of ablations, few of which a patch touches, and its certificate.

Two views that must agree: `VotesView` scores all ablations of the attacked image and knows no geometry;
`TouchedView` scores only those that the patch touches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attacks.surfaces.base import Attacked, OpenPlacements, Site, Surface, surface_of
from attacks.surfaces.clean_votes import votes_of
from attacks.surfaces.together import sites_together
from attacks.surfaces.touched import OfTouched, sums
from attacks.surfaces.views import Objective, View, WholeView, whole_view_class
from robustpatch.ablations.touched import Touched
from robustpatch.certificates.margins import rival_margins
from robustpatch.classifiers.base import CertifiedClassifier
from robustpatch.classifiers.isolation import certify, predict
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.voting.votes import UNITS, first_argmax


@dataclass(frozen=True, kw_only=True)
class VotesView(WholeView):
    """A smoothed classifier over all its ablations, by the soft votes (or summed scores) of its classes; "mean-softmax"
    is of the mean over ablations of the softmax: the cross-entropy that Levine & Feizi's release climbs.
    """

    classifier: SmoothedClassifier

    def __call__(self, x_adv: Float[Tensor, "P C H W"]) -> tuple[Float[Tensor, " P"], Int[Tensor, " P"]]:
        soft, counts, heard = sums(self.classifier, self.classifier.logits(x_adv.clone()), None, self.objective)
        return self.value(soft), torch.where(heard, self.answer(counts), -1)


@whole_view_class.register
def _(classifier: SmoothedClassifier) -> type[WholeView]:
    return VotesView


@dataclass(frozen=True, kw_only=True)
class TouchedView(OfTouched):
    """A smoothed classifier of which only the touched ablations are scored again; the rest keep their clean votes.

    `untouched` are those votes, or the units of their scores.
    """

    classifier: SmoothedClassifier
    untouched: Int[Tensor, "P K"]
    unit: int = 1

    @classmethod
    def of(
        cls,
        classifier: SmoothedClassifier,
        y: Tensor,
        cast: Bool[Tensor, "P N K"] | Int[Tensor, "P N K"],
        touched: Sequence[Touched],
        placement: Int[Tensor, "P count"],
        rival: Tensor | None = None,
        reach: Bool[Tensor, "P K"] | None = None,
        rank: int = 1,
    ) -> TouchedView:
        """`cast` are the clean votes of each row's image, or the units of its scores, `placement` the numbers of its
        patches' placements. For `touched` and `reach` see `OfTouched.rows`.
        """
        rows = OfTouched.rows(y, touched, placement, cast.shape[2], rival, reach)
        member = torch.zeros(cast.shape[:2], dtype=torch.bool, device=cast.device)
        member.scatter_(1, rows["index"], rows["valid"])
        kind, unit = (torch.int32, 1) if cast.dtype == torch.bool else (torch.int64, UNITS)
        untouched = cast.masked_fill(member[:, :, None], 0).sum(dim=1, dtype=kind)
        return cls(**rows, rank=rank, classifier=classifier, untouched=untouched, unit=unit)

    def __call__(self, x_adv: Float[Tensor, "P C H W"]) -> tuple[Float[Tensor, " P"], Int[Tensor, " P"]]:
        logits = self.classifier.logits(x_adv.clone(), self.index.clone())
        soft, counts, heard = sums(self.classifier, logits, self.valid)
        soft = soft + self.untouched.float() / self.unit
        some_left = self.valid.sum(dim=1) < self.classifier.ablation.count(*x_adv.shape[2:])
        answer = self.answer(counts + self.untouched)
        return self.value(soft, self.reach), torch.where(heard | some_left, answer, -1)


class VotesSurface(Surface):
    """A smoothed classifier of which all ablations are scored."""

    blind = False

    def __init__(self, classifier: SmoothedClassifier, attacked: Attacked) -> None:
        super().__init__(classifier, attacked)
        self.enough = self.forward_cost / 5  # votes


class TouchedSurface(Surface):
    """A classifier that decides by the votes of `voting`'s ablations, of which the touched ones alone are scored again.

    `votes`: what the ablations contribute on the clean images. `reach`: Bool[B,S,K], the classes that the certificate
    leaves in reach of one patch, by touched set; None where nothing is known. Climbs towards the strongest class seek
    it among these.
    """

    guides = True
    blind = False
    groups = True
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
    def touched(self) -> list[Touched]:
        """The ablations that each patch touches."""
        families = self.attacked.threat.families(*self.attacked.size)
        known = {family: self.voting.ablation.touched_at(family) for family in dict.fromkeys(families)}
        return [known[family] for family in families]

    @property
    def climb_cost(self) -> int:
        return self.voting.ablation.affected(self.attacked.threat, *self.attacked.size)

    @property
    def asking_cost(self) -> int:
        # Where the certificate is the votes', those that are known say what is open.
        return self.forward_cost if self.certifier.overridden(self.home, "certify") else 0

    def _reached(self, image: Tensor, placement: Tensor) -> Bool[Tensor, "P K"] | None:
        if self.reach is None:
            return None
        return self.reach[image, self.touched[0].set_of_placement.to(placement.device)[placement[:, 0]]]

    def view(
        self, image: Tensor, placement: Tensor, rival: Tensor | None = None, objective: Objective = "votes"
    ) -> View:
        if objective != "votes":
            return super().view(image, placement, rival, objective)
        return self._view(
            self.attacked.y[image], self.votes.cast[image], placement, rival, self._reached(image, placement)
        )

    def _view(self, y: Tensor, cast: Tensor, placement: Tensor, rival: Tensor | None, reach: Tensor | None) -> View:
        return TouchedView.of(self.voting, y, cast, self.touched, placement, rival, reach, self.attacked.rank)

    def _rival_margins(self) -> list[Int[Tensor, "S K"]] | None:
        """The least lead of y over each rival that one patch leaves at each touched set, of each image: below zero
        where it may raise the rival above y. None where the classifier proves nothing, or in a way of its own.
        """
        if self.certifier.overridden(self.home, "certify"):
            return None
        y, rows = self.attacked.y, range(len(self.attacked.y))
        return [rival_margins(self.votes.of(slice(i, i + 1)), y[i : i + 1], self.touched[0])[0] for i in rows]

    def _placement_margin(self) -> Tensor | None:
        """The certificate's map, of one that proves in a way of its own."""
        self.evaluations += self.asking_cost
        return certify(self.certifier, self.attacked.x, self.attacked.threat).placement_margin

    def open_placements(self, shuffled: list[Tensor], rivals: int) -> list[OpenPlacements]:
        rank, known = self.attacked.rank, self._rival_margins()
        if known is None:
            return self._by_map(shuffled)
        of_placement = self.touched[0].set_of_placement.to(self.attacked.x.device)
        found, reach = [], []
        for margins, order in zip(known, shuffled, strict=True):
            reach.append(margins < 0)
            most = min(max(rivals, rank), margins.shape[1] - 1)
            least, cheapest = margins.topk(most, dim=1, largest=False, sorted=True)
            margin = least[of_placement, min(rank, most) - 1]  # of the last rival that must come before y
            least, cheapest = least[:, :rivals], cheapest[:, :rivals]
            if rank > 1:
                cheapest = torch.full_like(cheapest, -1)
            cheapest = cheapest.masked_fill(least >= 0, -1)
            order = order[margin[order].argsort(stable=True)]
            order = order[margin[order] < 0]
            sets = of_placement[order]
            found.append(OpenPlacements(order, cheapest[sets], sets))
        if reach:
            self.reach = torch.stack(reach)
        return found

    def several(self, image: int, chance: torch.Generator) -> Iterator[Site]:
        """Placements that touch the ablations by whose votes y leads least without them, towards the class that is
        nearest to it there.
        """
        cast, y = self.votes.cast[image], int(self.attacked.y[image])
        for placement, rival in sites_together(cast, self.votes.unit, y, self.touched, chance):
            yield placement, rival if self.attacked.rank == 1 else -1

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
    return TouchedSurface(classifier, classifier, attacked) if pruned else VotesSurface(classifier, attacked)
