"""What a patch did to the votes: how much of the gap is the network's, and how much the attack's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustpatch.certificates.lead import least_lead
from robustpatch.classifiers.lending import lent
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.threats.base import Patches


@dataclass(frozen=True)
class Damage:
    """Of each attacked image: how many ablations its patch `touched`; how many of them it `turned`, which no longer
    vote for the prediction and do vote for the class that came closest to it (of scores, which give that class more);
    and the `lead` that is left to the prediction, in whole votes (< 0: it changed).
    """

    touched: Int[Tensor, " B"]
    turned: Int[Tensor, " B"]
    lead: Int[Tensor, " B"]


@torch.no_grad()
def damage(
    model: SmoothedClassifier,
    x_adv: Float[Tensor, "B C H W"],
    prediction: Int[Tensor, " B"],
    threat: Patches,
    corners: Int[Tensor, "B count 2"],
) -> Damage:
    """Count on the attacked images themselves, all ablations scored; which are touched is the ablation's geometry."""
    height, width = x_adv.shape[2:]
    votes = model.votes(lent(x_adv))
    cast = votes.cast
    member = torch.zeros_like(cast[:, :, 0], dtype=torch.bool)
    for patch, family in enumerate(threat.families(height, width)):
        touched = model.ablation.touched_at(family)
        member |= touched.member(touched.set_of_placement.to(corners.device)[family.find(corners[:, patch])])
    counts = votes.counts
    own = torch.nn.functional.one_hot(prediction, counts.shape[1]).bool()
    rival = counts.masked_fill(own, -1).argmax(dim=1)
    votes_own = cast.gather(2, prediction[:, None, None].expand(-1, cast.shape[1], 1))[..., 0]
    votes_rival = cast.gather(2, rival[:, None, None].expand(-1, cast.shape[1], 1))[..., 0]
    return Damage(
        touched=member.sum(dim=1),
        turned=(member & (votes_own < votes_rival)).sum(dim=1),
        lead=torch.div(least_lead(counts, prediction), votes.unit, rounding_mode="floor"),
    )
