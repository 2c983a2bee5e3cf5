"""PatchGuard's alarm as an attack sees it: the answer is to be another, and no window is to say too much of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attacks.surfaces.base import Attacked, Surface, surface_of
from attacks.surfaces.patchguard import WindowSurface, WindowView
from attacks.surfaces.touched import soft_votes
from attacks.surfaces.views import WholeView, whole_view_class
from robustpatch.certificates.robust_masking import Masking
from robustpatch.defenses.patchguard_alerts import AlarmedClassifier
from robustpatch.voting.votes import first_argmax


def unnoticed(
    said: Float[Tensor, "P N K"], masking: Masking, goal: Int[Tensor, " P"], y: Int[Tensor, " P"]
) -> Float[Tensor, " P"]:
    """Returns the objective, below zero where class `goal` (-1: the strongest besides y) is answered without an alert:
    the greater of how far it is behind, and of how much more than its share the loudest window says for it.
    """
    total = said.sum(dim=1)
    strongest = first_argmax(total.detach().scatter(1, y.clamp(min=0)[:, None], -1.0))
    goal = torch.where(goal >= 0, goal, strongest)[:, None]
    own, others = total.gather(1, goal)[:, 0], total.scatter(1, goal, -torch.inf)
    spoken = said.gather(2, goal[:, None].expand(-1, said.shape[1], 1))[..., 0]
    loudest = (spoken @ masking.windows.to(spoken.device, spoken.dtype).T).amax(dim=1)
    return torch.maximum(others.amax(dim=1) - own, loudest - float(masking.threshold) * own)


@dataclass(frozen=True, kw_only=True)
class WholeAlarmView(WholeView):
    """All votes of the attacked images. An alert is no prediction worth asking about: y is told in its place."""

    classifier: AlarmedClassifier

    def towards(self, target: int | Int[Tensor, " P"]) -> WholeAlarmView:
        return replace(self, rival=torch.zeros_like(self.y) + target)

    def __call__(self, x_adv: Float[Tensor, "P C H W"]) -> tuple[Float[Tensor, " P"], Int[Tensor, " P"]]:
        network, masking = self.classifier.network, self.classifier.masking(*x_adv.shape[2:])
        soft, votes, known = soft_votes(network, network.logits(x_adv.clone()))
        answer = masking.answer_or_alert(votes.cast)
        value = unnoticed(torch.where(known, soft, 0), masking, self.rival, self.y)
        return value, torch.where(answer < 0, self.y, answer)


@whole_view_class.register
def _(classifier: AlarmedClassifier) -> type[WholeView]:
    return WholeAlarmView


@dataclass(frozen=True, kw_only=True)
class AlarmView(WindowView):
    """The same of votes of which only the touched ablations are cast again."""

    def towards(self, target: int | Int[Tensor, " P"]) -> AlarmView:
        return replace(self, rival=torch.zeros_like(self.y) + target)

    def __call__(self, x_adv: Float[Tensor, "P C H W"]) -> tuple[Float[Tensor, " P"], Int[Tensor, " P"]]:
        network = self.classifier.network
        soft, votes, known = soft_votes(network, network.logits(x_adv.clone(), self.index.clone()))
        row, place = self.valid.nonzero(as_tuple=True)
        where = row, self.index[row, place]
        answer = self.masking.answer_or_alert(self.cast.index_put(where, votes.cast[row, place]))
        said = (self.cast.float() / votes.unit).index_put(where, torch.where(known, soft, 0)[row, place])
        return unnoticed(said, self.masking, self.rival, self.y), torch.where(answer < 0, self.y, answer)


class AlarmSurface(WindowSurface):
    """The alarm, of which the touched ablations alone are scored again."""

    home = AlarmedClassifier
    view_class = AlarmView

    _clean = Surface._clean  # the most voted class may be an alert

    def _rival_margins(self) -> list[Int[Tensor, "S K"]] | None:
        if self.certifier.overridden(AlarmedClassifier, "certify"):
            return None
        (sets,) = self.certifier.sets_of(self.attacked.threat, *self.attacked.size)
        masking = self.certifier.masking(*self.attacked.size)
        return list(masking.unnoticed_margins(self.votes, self.attacked.y, sets))


@surface_of.register
def _(classifier: AlarmedClassifier, attacked: Attacked, pruned: bool) -> Surface:
    return AlarmSurface(classifier, attacked) if pruned else Surface(classifier, attacked)
