"""PatchGuard as an attack sees it: what masking leaves of each class once the touched ablations say something else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attacks.surfaces.base import Attacked, Surface, surface_of
from attacks.surfaces.smoothed import TouchedSurface
from attacks.surfaces.touched import OfTouched, soft_votes
from attacks.surfaces.views import View
from robustpatch.certificates.robust_masking import Masking, incidence
from robustpatch.defenses.patchguard import MaskedClassifier, WindowClassifier
from robustpatch.threats.base import Patches
from robustpatch.voting.votes import Scored, Votes


def rival_margins(
    model: MaskedClassifier, votes: Votes | Scored, y: Int[Tensor, " B"], patch: Patches, size: tuple[int, int]
) -> Int[Tensor, "B S K"]:
    """The least lead of y over each rival that a single `patch` leaves at each of the S distinct sets of ablations that
    it can touch; below zero where it may raise the rival above y. A patch that touches all ablations can silence them
    all, so that nothing is closed to it.
    """
    sets = incidence(model.network.ablation, patch, size)
    margins = model.masking(*size).rival_margins(votes, y, sets)
    all_touched = sets.all(dim=1).to(y.device)[:, None]
    rivals = torch.arange(margins.shape[2], device=y.device) != y[:, None, None]
    return margins.masked_fill(all_touched & rivals, -1)


@dataclass(frozen=True, kw_only=True)
class WindowView(OfTouched):
    """A classifier judged by windows, of which only the touched ablations are scored again; the rest contribute what
    they did. `cast`: the clean votes, or units.
    """

    classifier: WindowClassifier
    masking: Masking
    cast: Bool[Tensor, "P N K"] | Int[Tensor, "P N K"]


@dataclass(frozen=True, kw_only=True)
class PatchGuardView(WindowView):
    """Robust masking.

    The objective is what masking leaves of y less what it leaves of the rival, in whole contributions; its gradient
    that of what is heard. (On MNIST as many images broke with the masked windows weighed softly, or with no masking in
    the objective at all.)
    """

    def __call__(self, x_adv: Float[Tensor, "P C H W"]) -> tuple[Float[Tensor, " P"], Int[Tensor, " P"]]:
        network = self.classifier.network
        logits = network.logits(x_adv.clone(), self.index.clone())
        soft, votes, known = soft_votes(network, logits)
        row, place = self.valid.nonzero(as_tuple=True)
        where = row, self.index[row, place]
        heard, left = self.masking.remainder(self.cast.index_put(where, votes.cast[row, place]))
        soft = torch.where(known, soft, 0)
        said = (self.cast.float() / votes.unit).index_put(where, soft[row, place])
        return self.value((said * heard).sum(dim=1), self.reach), self.answer(left)


class WholePatchGuardSurface(Surface):
    """Robust masking, scored whole."""

    def __init__(self, classifier: MaskedClassifier, attacked: Attacked) -> None:
        super().__init__(classifier, attacked)
        self.enough = self.forward_cost / 5  # votes


class WindowSurface(TouchedSurface):
    """A classifier judged by windows of ablations, of which the touched ones alone are scored again."""

    certifier: WindowClassifier
    view_class: ClassVar[type[WindowView]]

    def __init__(self, classifier: WindowClassifier, attacked: Attacked) -> None:
        super().__init__(classifier, classifier.network, attacked)

    @property
    def asking_cost(self) -> int:
        return 0  # the votes that are known say what is open

    def _view(self, y: Tensor, cast: Tensor, placement: Tensor, rival: Tensor | None, reach: Tensor | None) -> View:
        rows = OfTouched.rows(y, self.touched, placement, cast.shape[2], rival, reach)
        masking = self.certifier.masking(*self.attacked.size)
        return self.view_class(**rows, rank=self.attacked.rank, classifier=self.certifier, masking=masking, cast=cast)

    def _placement_margin(self) -> None:
        return None


class PatchGuardSurface(WindowSurface):
    """Robust masking."""

    home = MaskedClassifier
    certifier: MaskedClassifier  # type: ignore[assignment]  # narrower, and set by __init__ alone
    view_class = PatchGuardView

    def _counts(self) -> Int[Tensor, "B K"]:
        return self.certifier.left(self.votes, self.attacked.size)

    def _rival_margins(self) -> list[Int[Tensor, "S K"]] | None:
        if self.certifier.overridden(MaskedClassifier, "certify"):
            return None
        patch = self.attacked.threat
        return list(rival_margins(self.certifier, self.votes, self.attacked.y, patch, self.attacked.size))


@surface_of.register
def _(classifier: MaskedClassifier, attacked: Attacked, pruned: bool) -> Surface:
    return PatchGuardSurface(classifier, attacked) if pruned else WholePatchGuardSurface(classifier, attacked)
