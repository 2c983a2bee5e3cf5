"""votes + geometry -> Certificate: integer arithmetic, no network. See `margins` for the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustpatch.ablations.base import Ablation
from robustpatch.certificates.certificate import Certificate, Evidence, Method
from robustpatch.certificates.each_image import margins_of_each
from robustpatch.certificates.largest import check_method, largest_certified
from robustpatch.certificates.margins import check_votes, exact_margins, paper_margins
from robustpatch.threats.base import Threat
from robustpatch.threats.growing import Growing, squares
from robustpatch.threats.parse import as_threat
from robustpatch.voting.votes import Scored, Votes, first_argmax


@dataclass(frozen=True)
class VoteEvidence(Evidence):
    """The votes [B,N,K] of all ablations of B images of one size; `x`: the images, where the threat depends on them."""

    votes: Votes | Scored
    ablation: Ablation
    image_size: tuple[int, int]
    x: Float[Tensor, "B C H W"] | None = None

    def certify(self, threat: Threat, *, method: Method = "exact", guard: float = 0.0) -> Certificate:
        return certify_votes(self.votes, self.ablation, threat, self.image_size, method=method, guard=guard, x=self.x)

    def largest_certified(self, method: Method = "exact", growing: Growing = squares) -> Int[Tensor, " B"]:
        return largest_certified(self.votes, self.ablation, self.image_size, method, growing)


def certify_votes(
    votes: Votes | Scored,
    ablation: Ablation,
    threat: Threat | str,
    image_size: tuple[int, int],
    *,
    method: Method = "exact",
    guard: float = 0.0,
    x: Float[Tensor, "B C H W"] | None = None,
) -> Certificate:
    """Certify the predictions of B images from their votes [B,N,K] alone.

    - "exact": certified iff for every placement, with touched set A, and every rival j ≠ c:
      n_c - n_c[A] ≥ n_j - n_j[A] + |A| + [j < c]. Never weaker than "margin", and tight without close votes.
    - "margin": certified iff for every j ≠ c: n_c - n_j ≥ 2Δ + [j < c], Δ the largest |A| (Levine & Feizi 2020,
      Algorithms 1 and 2).

    A close vote counts as absent for c and as present for j. Summed scores (`Scored`) have n_k in units and u·|A| in
    place of |A| (2uΔ of 2Δ), u units being the range of a contribution; each counts u·guard units less for c, and as
    many more for j, within its range. Several patches (`threat.count` > 1) cost at most the sum
    of their damages, n_c[A] - n_j[A] + |A| each; for columns and rows their exact worst union is found.

    A threat that depends on the image (`WithinEach`) takes the clean images `x`. Of an image on which it has no place,
    the margin is the lead of c, close votes counted against it. Raises `InvalidInput` without them.
    """
    check_method(method)
    threat = as_threat(threat, image_size)
    check_votes(votes, ablation, image_size, guard)
    prediction = first_argmax(votes.counts)
    margins, maps = [], []
    for one in threat.threats:
        one.check_fits(*image_size)
        if one.varies:
            margin, each = margins_of_each(votes, prediction, ablation, one, x, method)
            margins.append(margin)
            maps.append(each)
            continue
        if method == "margin":
            margins.append(paper_margins(votes, prediction, ablation.affected(one, *image_size)))
            continue
        touched = ablation.touched(one, *image_size)
        worst = exact_margins(votes, prediction, touched, one.count)
        margins.append(worst.amin(dim=1))
        maps.append(worst[:, touched.set_of_placement.to(worst.device)] if one.count == 1 else None)
    margin = torch.stack(margins).amin(dim=0)
    known = [m for m in maps if m is not None]
    return Certificate(
        prediction=prediction,
        certified=margin >= 0,
        margin=margin,
        placement_margin=torch.cat(known, dim=1) if known and len(known) == len(threat.threats) else None,
        threat=threat,
        method=method,
        guard=guard,
        close=votes.close.sum(dim=(1, 2)),
        evidence=VoteEvidence(votes, ablation, image_size, x if threat.varies else None),
        unit=votes.unit,
    )
