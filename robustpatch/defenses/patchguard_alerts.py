"""PatchGuard's detector as an alarm: where one window says most of what is said for the answer, there is an alert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robustpatch.certificates.certificate import Outcome
from robustpatch.certificates.robust_masking import Masking
from robustpatch.defenses.patchguard import PatchGuard, WindowClassifier
from robustpatch.voting.votes import Scored, Votes


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
    is answered; where not one ablation has a score, there is an alert. (Printed certificates of masking at a threshold
    need more: votes for c itself may get a window masked. Here they get an alert.)
    """

    alerts = True
    outcome: ClassVar[Outcome] = "recovers or alerts"

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "alerts": True}

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """The shares of votes, whose argmax is `predict` where there is no alert; its gradient the soft votes'."""
        return self.network(x)

    def counts(self, x: Float[Tensor, "B C H W"]) -> Int[Tensor, "B K"]:
        return self.network.counts(x)

    def answer_of(self, masking: Masking, cast: Tensor) -> Int[Tensor, " B"]:
        return masking.answer_or_alert(cast)

    def margins_of(
        self, masking: Masking, votes: Votes | Scored, prediction: Int[Tensor, " B"], sets: Bool[Tensor, "S N"]
    ) -> Int[Tensor, "B S"]:
        """Votes by which the class stays ahead of whatever is answered besides; at most -1 where the clean image gets
        an alert.
        """
        found = masking.unnoticed_margins(votes, prediction.clamp(min=0), sets).amin(dim=2)
        return torch.where(prediction[:, None] < 0, found.clamp(max=-1), found)
