"""Minority reports: an alert where an image under one mask is clearly another thing (McCoyd 2020, made sound)."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robustpatch.certificates.exact import Certificate
from robustpatch.classifiers import checks
from robustpatch.classifiers.base import CertifiedClassifier
from robustpatch.defenses.double_masking import SILENT, closed, named
from robustpatch.defenses.masked_network import MaskedNetwork
from robustpatch.defenses.patchcleanser import DoubleMasking
from robustpatch.defenses.soft_masking import worst_union
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Threat
from robustpatch.threats.parse import as_threat
from robustpatch.voting.rules import first_argmax


@dataclass(frozen=True)
class MinorityReports(DoubleMasking):
    """PatchCleanser's masks, each used alone: k forwards of an image, not k².

    Args:
        confidence: the softmax that a class must exceed under a mask to be heard, in [0, 1). Higher, there are fewer
            alerts on clean images, and fewer certificates.
        masks, patch, hidden, guard, tight: as PatchCleanser's.
        worst: of training, how many masks are tried to find the one that is worst for an image; 0: one is drawn.
    """

    name: ClassVar[str] = "minority-reports"
    confidence: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.confidence < 1:
            raise InvalidInput(f"confidence is {self.confidence}; give the softmax to be exceeded, from 0 to below 1")

    @property
    def heard_above(self) -> float:
        """The log-odds that a class must exceed to be heard."""
        return log(self.confidence / (1 - self.confidence)) if self.confidence else -inf

    def wrap(self, network: nn.Module, *, num_classes: int) -> AlertingClassifier:
        return AlertingClassifier(network, self, num_classes=num_classes)


class AlertingClassifier(MaskedNetwork, CertifiedClassifier):
    """A classifier that answers a class or, -1, an alert; under no patch within the threat does a certified image get
    another class.

    Each mask hides part of the image, and all together every place of the patch. The answer is the class of the largest
    mean softmax under the masks. A mask is heard where the softmax of its class is above `confidence` t; where one that
    is heard names another class than the answer, or logits are no numbers, there is an alert.

    `certify` finds the images that are answered c without an alert and of which, wherever the patch is, some mask hides
    it under which the log-odds of c, its logit less log Σ exp of the others, exceed log(t/(1-t)) + 2·guard, and its
    logit all others by more than 2·guard.

    Proof. Let m be that mask. Under it the attacked image shows the network the numbers of the clean one. Where each
    logit moves by `guard`, so does log Σ exp, and the log-odds by 2·guard: m is heard, and names c. So unless there is
    an alert, the answer is c, however it was found. (Printed versions
    take masks that leave out places at the border, hear a mask at the threshold that is not heard there, or certify a
    mask that is not heard.) An image whose clean answer is an alert is not certified, and counts as wrong.
    """

    defense: MinorityReports  # type: ignore[assignment]  # narrower, and never another once it is made
    alerts = True
    certified_in_training: ClassVar[int] = 500

    def cost(self, height: int, width: int) -> tuple[int, int]:
        """Masked images that the network scores of one image: for `forward` and for `predict`."""
        most = len(self.defense.mask_set(height, width).views) * self.each(height, width)
        return most, most

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "alerts": True}

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Returns the mean softmax under the masks, whose argmax is `predict` where there is no alert."""
        return mean_shares(self.view_logits(x))

    def view_logits(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B V K"]:
        """The network's logits of each image under every view. Differentiable."""
        views = len(self.defense.mask_set(*x.shape[2:]).views)
        image = torch.arange(len(x), device=x.device).repeat_interleave(views)
        view = torch.arange(views, device=x.device).repeat(len(x))
        return self.logits(x, image, view).view(len(x), views, self.num_classes)

    @torch.no_grad()
    def predict(self, x: Float[Tensor, "B C H W"]) -> Int[Tensor, " B"]:
        """The class of each image, -1 for an alert."""
        checks.inputs(self, x)
        return answers(self.view_logits(x), self.defense.heard_above)

    @torch.no_grad()
    def certify(self, x: Float[Tensor, "B C H W"], threat: Threat | str) -> Certificate:
        """Prove, for each image, that under every patch within `threat` the answer stays or is an alert.

        `close` counts the masks under which a class is heard, or not, by no more than 2·guard. Raises `InvalidInput`
        where some placement lies inside no mask, and for a network whose logits differ alone and beside others.
        """
        checks.inputs(self, x)
        threat = as_threat(threat, x.shape[2:])
        threat.check_fits(x.shape[2], x.shape[3])
        masks = self.defense.mask_set(*x.shape[2:])
        self.check_covered(masks, threat)
        self.check_network(x)
        guard, logits = self.guard_on(x.device), self.view_logits(x)
        if not bool(torch.isfinite(logits).all()):
            raise checks.not_finite()
        prediction = answers(logits, self.defense.heard_above)
        certified = closed(self.steady(logits, prediction, guard), masks.hiding(threat)).all(dim=1)
        near = (log_odds(logits) - self.defense.heard_above).abs() <= 2 * guard
        return Certificate(
            prediction=prediction,
            certified=certified & (prediction >= 0),
            margin=None,
            placement_margin=None,
            threat=threat,
            method="exact",
            guard=guard,
            close=near.sum(dim=1),
            outcome="recovers or alerts",
        )

    def steady(self, logits: Float[Tensor, "B V K"], answer: Int[Tensor, " B"], guard: float) -> Bool[Tensor, "B V"]:
        """Marks the views that name the answer and are heard, whatever moves their logits by `guard`."""
        label, gap = named(logits)
        heard = log_odds(logits) > self.defense.heard_above + 2 * guard
        return (label == answer[:, None]) & heard & (gap > 2 * guard)

    def training_loss(
        self, x: Float[Tensor, "B C H W"], y: Int[Tensor, " B"], threat: Threat, generator: torch.Generator, done: float
    ) -> Float[Tensor, ""]:
        """Cross-entropy of each image under a mask drawn for it, or the worst of `defense.worst` such."""
        masks = self.defense.mask_set(*x.shape[2:])
        self.check_covered(masks, threat)
        tried = min(self.defense.worst or 1, len(masks.views))
        drawn = torch.rand(len(x), len(masks.views), generator=generator).argsort(dim=1)[:, :tried].to(x.device)
        view = drawn[:, 0]
        if tried > 1:
            training = self.network.training
            self.network.eval()
            try:
                view = worst_union(self.scoring(x), y, drawn)
            finally:
                self.network.train(training)
        return nn.functional.cross_entropy(self.logits(x, torch.arange(len(x), device=x.device), view), y)


def answers(logits: Float[Tensor, "B V K"], heard_above: float) -> Int[Tensor, " B"]:
    """The class of the largest mean softmax; -1, an alert, where a view whose log-odds are above that names another, or
    a view names none.
    """
    label = named(logits)[0]
    answer = first_argmax(mean_shares(logits))
    differs = ((label != answer[:, None]) & (log_odds(logits) > heard_above)) | (label == SILENT)
    return torch.where(differs.any(dim=1), -1, answer)


def log_odds(logits: Float[Tensor, "*any K"]) -> Float[Tensor, "*any"]:
    """The logarithm of p/(1-p) of the largest softmax p: its logit less log Σ exp of the others. In float64."""
    first, place = logits.double().max(dim=-1, keepdim=True)
    return (first - logits.double().scatter(-1, place, -torch.inf).logsumexp(dim=-1, keepdim=True))[..., 0]


def mean_shares(logits: Float[Tensor, "B V K"]) -> Float[Tensor, "B K"]:
    """The mean softmax of the views; those without a largest logit add nothing."""
    silent = (named(logits.detach())[0] == SILENT)[..., None]
    return torch.where(silent, 0, torch.where(silent, 0, logits).softmax(dim=2)).mean(dim=1)
