"""PatchGuard as an attack sees it: what masking leaves of each class once the touched ablations say something else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attacks.surfaces.base import Attacked, Objective, Surface, View, answered, gap, surface_of
from attacks.surfaces.smoothed import TouchedVotes
from attacks.surfaces.touched import OfTouched, soft_votes
from robustpatch.ablations.touched import Touched
from robustpatch.certificates.robust_masking import Masking, incidence
from robustpatch.defenses.patchguard import MaskedClassifier
from robustpatch.threats.base import Patches
from robustpatch.voting.silence import has_score
from robustpatch.voting.votes import Scored, Votes


def rival_margins(
    model: MaskedClassifier, votes: Votes | Scored, y: Int[Tensor, " B"], patch: Patches, size: tuple[int, int]
) -> Int[Tensor, "B S K"]:
    """How far y stays ahead of each rival, at least, whatever a single `patch` does at each of the S distinct sets of
    ablations that it can touch; below zero where the attacker may have it in his power to raise the rival. A patch that
    touches all ablations can silence them all, so that nothing is closed to it.
    """
    sets = incidence(model.network.ablation, patch, size)
    margins = model.masking(*size).rival_margins(votes, y, sets)
    all_touched = sets.all(dim=1).to(y.device)[:, None]
    rivals = torch.arange(margins.shape[2], device=y.device) != y[:, None, None]
    return margins.masked_fill(all_touched & rivals, -1)


@dataclass(frozen=True)
class MaskedView(OfTouched):
    """Robust masking of which only the touched ablations are scored again; the rest contribute what they did.

    The objective is what masking leaves of y less what it leaves of the rival, in whole contributions; its gradient
    that of what is heard. (On MNIST as many images broke with the masked windows weighed softly, or with no masking in
    the objective at all.) `cast` [P,N,K]: the clean votes, or units.
    """

    classifier: MaskedClassifier
    masking: Masking
    cast: Bool[Tensor, "P N K"] | Int[Tensor, "P N K"]

    _ROWS: ClassVar[tuple[str, ...]] = (*OfTouched._ROWS, "cast")

    @classmethod
    def of(
        cls,
        classifier: MaskedClassifier,
        y: Tensor,
        cast: Bool[Tensor, "P N K"] | Int[Tensor, "P N K"],
        touched: Touched,
        placement: Int[Tensor, "P count"],
        size: tuple[int, int],
        rival: Tensor | None = None,
        reach: Bool[Tensor, "P K"] | None = None,
        rank: int = 1,
    ) -> MaskedView:
        """As `TouchedView.of`, of images of that size."""
        rows = OfTouched.rows(y, touched, placement, cast.shape[2], rival, reach)
        return cls(**rows, rank=rank, classifier=classifier, masking=classifier.masking(*size), cast=cast)

    def __call__(self, x_adv: Float[Tensor, "P C H W"]) -> tuple[Float[Tensor, " P"], Int[Tensor, " P"]]:
        network = self.classifier.network
        logits = network.logits(x_adv.clone(), self.index.clone())
        scores = network.voting.scores(logits.detach())
        votes, known = network.voting.votes(scores, network.guard_on(x_adv.device)), has_score(scores)
        row, place = self.valid.nonzero(as_tuple=True)
        where = row, self.index[row, place]
        heard, left = self.masking.remainder(self.cast.index_put(where, votes.cast[row, place]))
        soft = torch.where(known, soft_votes(network.voting, torch.where(known, logits, 0), votes), 0)
        said = (self.cast.float() / votes.unit).index_put(where, soft[row, place])
        value = gap((said * heard).sum(dim=1), self.y, self.rival, self.reach, self.rank)
        return value, answered(left, self.y, self.rank)


class WholeMasked(Surface):
    """Robust masking, scored whole."""

    def __init__(self, classifier: MaskedClassifier, attacked: Attacked) -> None:
        super().__init__(classifier, attacked)
        self.enough = self.forward_cost / 5  # votes


class MaskedVotes(TouchedVotes):
    """Robust masking of which the touched ablations alone are scored again."""

    home = MaskedClassifier

    def __init__(self, classifier: MaskedClassifier, attacked: Attacked) -> None:
        self.masked = classifier
        super().__init__(classifier, classifier.network, attacked)

    def _counts(self) -> Int[Tensor, "B K"]:
        return self.masked.left(self.votes, self.attacked.size)

    @property
    def asking_cost(self) -> int:
        return 0  # the votes that are known say what is open

    def view(
        self, image: Tensor, placement: Tensor, rival: Tensor | None = None, objective: Objective = "votes"
    ) -> View:
        if objective != "votes":
            return Surface.view(self, image, placement, rival, objective)
        y, cast, size = self.attacked.y[image], self.votes.cast[image], self.attacked.size
        reach, rank = self._reached(image, placement), self.attacked.rank
        return MaskedView.of(self.masked, y, cast, self.touched, placement, size, rival, reach, rank)

    def _rival_margins(self, single: Patches, touched: Touched) -> list[Int[Tensor, "S K"]] | None:
        if self.masked.overridden(MaskedClassifier, "certify"):
            return None
        return list(rival_margins(self.masked, self.votes, self.attacked.y, single, self.attacked.size))

    def _placement_margin(self) -> None:
        return None


@surface_of.register
def _(classifier: MaskedClassifier, attacked: Attacked, pruned: bool) -> Surface:
    return MaskedVotes(classifier, attacked) if pruned else WholeMasked(classifier, attacked)
