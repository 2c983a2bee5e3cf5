"""PatchGuard as an attack sees it: what masking leaves of each class once the touched ablations say something else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attacks.surfaces.base import OfTouched, gap, soft_votes
from robustpatch.ablations.touched import Touched
from robustpatch.certificates.robust_masking import Masking, incidence
from robustpatch.classifiers.lending import lent
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.defenses.patchguard import MaskedClassifier
from robustpatch.threats.base import Patches
from robustpatch.voting.silence import has_score
from robustpatch.voting.votes import Scored, Votes, first_argmax


def smoothed_inside(model: torch.nn.Module) -> SmoothedClassifier | None:
    """The smoothed classifier whose ablations decide, each on what it shows: the model, or the one that PatchGuard
    masks.
    """
    inner = model.network if isinstance(model, MaskedClassifier) else model
    return inner if isinstance(inner, SmoothedClassifier) else None


def rival_margins(
    model: MaskedClassifier, votes: Votes | Scored, y: Int[Tensor, " B"], patch: Patches, size: tuple[int, int]
) -> Int[Tensor, "B S K"]:
    """How far y stays ahead of each rival, at least, whatever a single `patch` does at each of the S distinct sets of
    ablations that it can touch; below zero where the attacker may have it in his power to raise the rival.
    """
    return model.masking(*size).rival_margins(votes, y, incidence(model.network.ablation, patch, size))


@dataclass(frozen=True)
class MaskedVictim(OfTouched):
    """Robust masking of which only the touched ablations are scored again; the rest contribute what they did.

    The objective is what masking leaves of y less what it leaves of the rival, in whole contributions; its gradient
    that of what is heard. (On MNIST as many images broke with the masked windows weighed softly, or with no masking in
    the objective at all.) `cast` [P,N,K]: the clean votes, or units.
    """

    model: MaskedClassifier
    masking: Masking
    cast: Bool[Tensor, "P N K"] | Int[Tensor, "P N K"]

    _ROWS: ClassVar[tuple[str, ...]] = (*OfTouched._ROWS, "cast")

    @classmethod
    def of(
        cls,
        model: MaskedClassifier,
        y: Tensor,
        cast: Bool[Tensor, "P N K"] | Int[Tensor, "P N K"],
        touched: Touched,
        placement: Int[Tensor, "P count"],
        size: tuple[int, int],
        rival: Tensor | None = None,
        reach: Bool[Tensor, "P K"] | None = None,
    ) -> MaskedVictim:
        """As `TouchedVictim.of`, of images of that size."""
        rows = OfTouched.rows(y, touched, placement, cast.shape[2], rival, reach)
        return cls(**rows, model=model, masking=model.masking(*size), cast=cast)

    def __call__(self, x_adv: Float[Tensor, "P C H W"]) -> tuple[Float[Tensor, " P"], Int[Tensor, " P"]]:
        network = self.model.network
        logits = network.logits(lent(x_adv), lent(self.index))
        scores = network.voting.scores(logits.detach())
        votes, known = network.voting.votes(scores, network.guard_on(x_adv.device)), has_score(scores)
        row, place = self.valid.nonzero(as_tuple=True)
        where = row, self.index[row, place]
        heard, left = self.masking.remainder(self.cast.index_put(where, votes.cast[row, place]))
        soft = torch.where(known, soft_votes(network.voting, torch.where(known, logits, 0), votes), 0)
        said = (self.cast.float() / votes.unit).index_put(where, soft[row, place])
        return gap((said * heard).sum(dim=1), self.y, self.rival, self.reach), first_argmax(left)
