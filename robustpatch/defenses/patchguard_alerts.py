"""PatchGuard's detector as an alarm: where one window says most of what is said for the answer, there is an alert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustpatch.certificates.each_image import certify_each
from robustpatch.certificates.exact import Certificate
from robustpatch.certificates.robust_masking import Masking
from robustpatch.classifiers import checks
from robustpatch.defenses.patchguard import PatchGuard, WindowClassifier
from robustpatch.threats.base import Threat
from robustpatch.threats.parse import as_threat
from robustpatch.voting.silence import answered
from robustpatch.voting.votes import first_argmax


@dataclass(frozen=True)
class PatchGuardAlerts(PatchGuard):
    """The class with the most evidence, and an alert where a window holds more than `threshold` of it.

    `window`, `voting`: as PatchGuard's. `threshold`, 0 to 1: higher, there are fewer alerts on clean images, and fewer
    certificates; at 1 there is none, which leaves plain smoothing and its exact certificate.
    """

    name: ClassVar[str] = "patchguard-alerts"
    threshold: float = 0.4

    def wrap(self, network: nn.Module, *, num_classes: int) -> AlarmedClassifier:
        return AlarmedClassifier(network, self, num_classes=num_classes)


class AlarmedClassifier(WindowClassifier):
    """A smoothed classifier that answers the class with the most votes or, -1, an alert; under no patch within the
    threat does a certified image get another class.

    Proof. Let a patch touch the ablations A, which some window W holds, and let class j be answered without an alert.
    W holds at most t·n_j of j's votes n_j, and the others, n_j - W's, are no more than they were on the clean image,
    R_j. So n_j ≤ R_j/(1 - t). The certified class c keeps what it has outside A. If that is more for every j, only c
    is answered. (Printed certificates of masking at a threshold need more: votes for c itself may get a window masked.
    Here they get an alert.)
    """

    alerts = True

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "alerts": True}

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """The shares of votes, whose argmax is `predict` where there is no alert; its gradient the soft votes'."""
        return self.network(x)

    @torch.no_grad()
    def predict(self, x: Float[Tensor, "B C H W"]) -> Int[Tensor, " B"]:
        """The class of each image, -1 for an alert: also where not one ablation has a score."""
        checks.inputs(self, x)
        scores, model = self.network.scores(x), self.network
        votes = model.voting.votes(scores, model.guard_on(x.device))
        return answered(answers(self.masking(*x.shape[2:]), votes.cast), scores)

    def counts(self, x: Float[Tensor, "B C H W"]) -> Int[Tensor, "B K"]:
        return self.network.counts(x)

    @torch.no_grad()
    def certify(self, x: Float[Tensor, "B C H W"], threat: Threat | str) -> Certificate:
        """Prove, for each image, that under every patch within `threat` the answer stays or is an alert.

        The margins are votes by which the class stays ahead of whatever is answered besides; at most -1 where the clean
        image gets an alert. Raises `InvalidInput` as PatchGuard's does.
        """
        checks.inputs(self, x)
        threat = as_threat(threat, x.shape[2:])
        if threat.varies:
            return certify_each(self.certify, x, threat)
        size, model = (x.shape[2], x.shape[3]), self.network
        masking, sets = self.masking(*size), self.sets_of(threat, *size)
        votes = model.voting.votes(model.certifiable_scores(x), model.guard_on(x.device))
        prediction, maps = answers(masking, votes.cast), []
        for one, touched in zip(threat.threats, sets, strict=True):
            of_placement = model.ablation.touched(one, *size).set_of_placement.to(prediction.device)
            found = masking.unnoticed_margins(votes, prediction.clamp(min=0), touched).amin(dim=2)
            maps.append(torch.where(prediction[:, None] < 0, found.clamp(max=-1), found)[:, of_placement])
        placement_margin = torch.cat(maps, dim=1)
        margin = placement_margin.amin(dim=1)
        return Certificate(
            prediction=prediction,
            certified=margin >= 0,
            margin=margin,
            placement_margin=placement_margin,
            threat=threat,
            method="exact",
            guard=model.guard_on(prediction.device),
            close=votes.close.sum(dim=(1, 2)),
            unit=votes.unit,
            outcome="recovers or alerts",
        )


def answers(masking: Masking, cast: Tensor) -> Int[Tensor, " B"]:
    """The class to which `cast` [B,N,K] adds up most, the lowest of equals; -1, an alert, where a window holds too much
    of that.
    """
    answer = first_argmax(cast.sum(dim=1, dtype=torch.int64))
    return torch.where(masking.suspicious(cast, answer), -1, answer)
