"""Minority reports as an attack sees them: no mask may object to the class that the patch is to bring about."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attacks.surfaces.base import Attacked, Surface, surface_of
from attacks.surfaces.patchcleanser import PatchCleanserSurface
from attacks.surfaces.views import Objective, WholeView, whole_view, whole_view_class
from robustpatch.defenses.double_masking import named
from robustpatch.defenses.minority_reports import AlertingClassifier, answers, log_odds, mean_shares


@dataclass(frozen=True, kw_only=True)
class MinorityReportsView(WholeView):
    """Attacked images under every mask, leaning on nothing.

    A mask objects to a class z while another leads it there, and is heard: min(lead over z, log-odds of its class -
    those to be heard). The objective is the greater of log Σ exp of that over the masks, less its value where
    all are 0, and of what the largest mean softmax has over z's, in logs; below zero about where z is the answer and
    nobody objects. z: the rival, or the class of the largest mean softmax besides y. An alert is no prediction worth
    asking about: y is told in its place.
    """

    classifier: AlertingClassifier

    def towards(self, target: int | Int[Tensor, " P"]) -> MinorityReportsView:
        """Its masks are about z: the target is that."""
        return replace(self, rival=torch.zeros_like(self.y) + target)

    def __call__(self, x_adv: Float[Tensor, "P C H W"]) -> tuple[Float[Tensor, " P"], Int[Tensor, " P"]]:
        model, logits = self.classifier, self.classifier.view_logits(x_adv.clone())
        answer = answers(logits.detach(), model.defense.heard_above)
        logits = torch.where((named(logits.detach())[0] >= 0)[..., None], logits, 0)
        shares = mean_shares(logits)
        strongest = shares.detach().scatter(1, self.y[:, None], -1).argmax(dim=1)
        goal = torch.where(self.rival >= 0, self.rival, strongest)[:, None]
        own = logits.gather(2, goal[..., None].expand(-1, logits.shape[1], 1))[..., 0]
        lead = logits.scatter(2, goal[..., None].expand(-1, logits.shape[1], 1), -torch.inf).amax(dim=2) - own
        heard = log_odds(logits).to(lead.dtype) - model.defense.heard_above
        objection = torch.minimum(lead, heard).logsumexp(dim=1)
        objection = objection - torch.tensor(float(logits.shape[1])).log()
        logs = shares.clamp(min=1e-12).log()
        behind = logs.scatter(1, goal, -torch.inf).amax(dim=1) - logs.gather(1, goal)[:, 0]
        return torch.maximum(objection, behind), torch.where(answer < 0, self.y, answer)


@whole_view_class.register
def _(classifier: AlertingClassifier) -> type[WholeView]:
    return MinorityReportsView


class MinorityReportsSurface(PatchCleanserSurface):
    """Minority reports, whose certificate says which places are closed: those that a steady mask hides."""

    model: AlertingClassifier
    groups = False

    @torch.no_grad()
    def _clean(self) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
        x = self.attacked.x
        logits = self.model.view_logits(x.clone())
        label, gap = named(logits)
        heard = (log_odds(logits) - self.model.defense.heard_above).to(gap.dtype)
        own = torch.where(label == self.attacked.y[:, None], torch.minimum(gap, heard), -gap)
        self.lead = own - 2 * self.model.guard_on(x.device)  # above 0 exactly where the view is steady
        self.weakest, self.complete = label, torch.ones_like(label, dtype=torch.bool)
        return answers(logits, self.model.defense.heard_above), torch.full(
            (len(x),), self.predict_cost, device=x.device
        )

    @property
    def climb_cost(self) -> int:
        return self.forward_cost

    def view(
        self,
        image: Int[Tensor, " P"],
        placement: Int[Tensor, "P count"],
        rival: Int[Tensor, " P"] | None = None,
        objective: Objective = "votes",
    ) -> WholeView:
        """All masks of the attacked images, whatever the objective."""
        return whole_view(self.classifier, self.attacked.x[image], self.attacked.y[image], rival)


@surface_of.register
def _(classifier: AlertingClassifier, attacked: Attacked, pruned: bool) -> Surface:
    return MinorityReportsSurface(classifier, attacked) if pruned else Surface(classifier, attacked)
