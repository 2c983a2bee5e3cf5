"""One attack on some images of a batch -> a record of each: proposed, judged, and what the patch did to the votes."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attacks.base import PatchAttack, judge, judged_patches
from attacks.criterion import Changed, Criterion
from attacks.ensemble import counts_itself
from attacks.propose import propose
from evaluate.model.batch_independence import check_alone
from evaluate.runs.records import AttackRecord
from robustpatch.certificates.lead import least_lead
from robustpatch.classifiers.base import Classifier
from robustpatch.classifiers.smoothed import SmoothedClassifier, voting_classifier
from robustpatch.threats.base import Patches


@dataclass(frozen=True)
class Group:
    """Images [B,C,H,W] of one batch that are attacked alike, by one criterion; `numbers` are their indices.

    `certified`: they are attacked without pruning. `proof`: their certificates hold without a confidence, so that the
    classifier's own `predict` judges, and an abstention is no longer the prediction. `fresh`: of such images, who is
    asked once more about some of those that held (see `batch_independence.check_alone`).
    """

    x: Tensor
    criterion: Criterion
    numbers: list[int]
    certified: bool
    proof: bool
    fresh: Classifier | None

    def alone(self, i: int) -> Group:
        """One of the images."""
        rows = slice(i, i + 1)
        return replace(self, x=self.x[rows], criterion=self.criterion.of(rows), numbers=self.numbers[rows])


def attack_group(
    classifier: Classifier, group: Group, attack: PatchAttack, threat: Patches, seed: int
) -> list[tuple[AttackRecord, Tensor]]:
    """Run the attack and judge what it proposes: a record and the attacked image [C,H,W] of each image.

    A threat that depends on the image is tried image by image; where it has no place, the record has no corners.
    """
    if threat.varies:
        each = [(group.alone(i), threat.of_image(image)) for i, image in enumerate(group.x)]
        return [
            (_nowhere(one, attack, threat), one.x[0])
            if own is None
            else attack_group(classifier, one, attack, own, seed)[0]
            for one, own in each
        ]
    x, criterion, unpruned = group.x, group.criterion, group.certified and not attack.touched_only
    # The same seed for every attack: each draws for each image on its own, and an ensemble does what its members would.
    seeded = hashlib.sha256(repr((seed, str(threat), unpruned)).encode()).digest()[:8]
    generator = torch.Generator().manual_seed(int.from_bytes(seeded, "big") >> 1)
    started = time.monotonic()
    labels = criterion.y if isinstance(criterion, Changed) else criterion  # which attacks of others know too
    proposal = propose(attack, classifier, x, labels, threat, generator=generator)
    outcome = judge(classifier, x, criterion, threat, proposal, proof=group.proof)
    if group.fresh is not None:
        check_alone(group.fresh, proposal.x_adv, criterion, outcome, proposal.broken, group.numbers, attack.name)
    judged = judged_patches(x, proposal, outcome)
    if counts_itself(attack) and proposal.patches is not None:  # of any other it would be a mere claim
        judged = proposal.patches
    valid = outcome.contained & outcome.in_range
    broken = valid & criterion.broken(outcome.prediction, outcome.counts)
    if classifier.randomized and classifier.certifies and not group.proof:
        broken &= outcome.prediction >= 0
    seconds = (time.monotonic() - started) / len(x)
    voting, votes = voting_classifier(classifier), None
    if voting is not None and voting is classifier and criterion.rank == 1:
        shown = torch.where(valid[:, None, None, None], proposal.x_adv, x)
        at = torch.where(valid[:, None, None], proposal.corners, 0)
        votes = damage(voting, shown, criterion.y, threat, at)
    return [
        (
            AttackRecord(
                attack=attack.name,
                threat=str(threat),
                unpruned=unpruned,
                broken=bool(broken[i]),
                contained=bool(outcome.contained[i]),
                in_range=bool(outcome.in_range[i]),
                prediction=int(outcome.prediction[i]),
                corners=proposal.corners[i].flatten().tolist(),
                evaluations=int(proposal.evaluations[i]),
                visited=float(proposal.visited[i]),
                seconds=seconds,
                by=None if proposal.by is None else proposal.by[i],
                patches=len(judged[i]),
                **({} if votes is None or not valid[i] else {name: int(part[i]) for name, part in vars(votes).items()}),
            ),
            proposal.x_adv[i],
        )
        for i in range(len(x))
    ]


def _nowhere(group: Group, attack: PatchAttack, threat: Patches) -> AttackRecord:
    """The record of an image that keeps its prediction because there is no place for a patch."""
    return AttackRecord(
        attack=attack.name,
        threat=str(threat),
        unpruned=group.certified and not attack.touched_only,
        broken=False,
        contained=True,
        in_range=True,
        prediction=int(group.criterion.y[0]),
        corners=[],
        evaluations=0,
        visited=0.0,
        seconds=0.0,
    )


@dataclass(frozen=True)
class Damage:
    """Of each attacked image: the ablations its patch `touched`; those of them it `turned`, which no longer vote for
    the prediction and do vote for the class that came closest to it (of scores, which give that class more); and the
    `lead` that is left to the prediction, in whole votes (< 0: it changed).
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
    votes = model.votes(x_adv.clone())
    cast = votes.cast
    member = torch.zeros_like(cast[:, :, 0], dtype=torch.bool)
    for patch, family in enumerate(threat.families(height, width)):
        touched = model.ablation.touched_at(family)
        member |= touched.member(touched.set_of_placement.to(corners.device)[family.find(corners[:, patch])])
    counts = votes.counts
    own = torch.nn.functional.one_hot(prediction, counts.shape[1]).bool()
    rival = counts.masked_fill(own, -1).argmax(dim=1)
    votes_own, votes_rival = (
        cast.gather(2, kind[:, None, None].expand(-1, cast.shape[1], 1))[..., 0] for kind in (prediction, rival)
    )
    return Damage(
        touched=member.sum(dim=1),
        turned=(member & (votes_own < votes_rival)).sum(dim=1),
        lead=torch.div(least_lead(counts, prediction), votes.unit, rounding_mode="floor"),
    )
