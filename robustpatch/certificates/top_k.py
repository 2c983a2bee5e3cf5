"""The certificate that a class stays among the k most voted, whatever one patch does. Votes + geometry -> it.

Classes are ranked by votes, the lower index first among equals: `first_argmax` is the first of that order, and y is
among the top k iff fewer than k classes j have n_j > n_y, or n_j = n_y and j < y.

What a patch can do. It rewrites the ablations of its touched set A, and no others. Each of these can add u to a count
(1 vote, or the units of a score's range) and M to all counts together (`Voting.capacity`). Let R_k = n_k - n_k[A] be
what is left of a count outside A, and d_j = max(0, R_y - R_j + [j > y]) what j lacks to be ranked before a y without
any vote in A. With d_(1) ≤ d_(2) ≤ … the rivals' in order:

    y can be driven out of the top k  ⇔  d_(k) ≤ u·|A|  and  d_(1) + … + d_(k) ≤ M·|A|.

⇒: k rivals are ranked before y, each with at least its d_j from A: at most u from an ablation, and M for all of them.
The k least satisfy both if any k do. ⇐: withdraw y's votes in A; then write what the k rivals lack as one list, d_(1)
times the first, d_(2) times the second, …, and deal it out to the ablations of A in turn. A rival's entries follow each
other and number u·|A| at most, so no ablation gets more than u of them; the whole list has M·|A| at most, so none gets
more than M. (The Gale-Ryser condition for a 0/1 matrix of these column sums with at most M ones a row; the rule of
McNaughton 1959.) What a rule must add besides, as top-1 its one vote, goes to those rivals and harms none. For k = 1
the second condition follows from the first, as u ≤ M: this is the exact certificate.

Zhou et al. (2025, CostCert, arXiv:2507.23335) compare the second sum with the budget, for one vote an ablation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.touched import Touched
from robustpatch.certificates.lead import FAR, ranks
from robustpatch.certificates.margins import check_votes, leads
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches, Threat
from robustpatch.threats.parse import as_threat
from robustpatch.voting.votes import Scored, Votes


@dataclass(frozen=True)
class TopKCertificate:
    """For every image i with `certified[i]`, no patch within `threat` drives class `y[i]` out of the `k` most voted.

    Those are the first k by votes, the lower index first among equals. This holds for every content and placement,
    provided that no score of an untouched ablation moves by more than `guard` between two evaluations.

    Attributes:
        y: Int[B], the classes asked about. k: how many may be named.
        clean: Bool[B], whether y is among the top k of these votes; so wherever it is certified.
        certified: Bool[B].
        margin: Int[B], the least lead n_y - n_j - [j < y] over the k-th strongest rival j that an attacker can bring
            about; certified iff ≥ 0. Exact for one patch without close votes, else at most that.
        threat, guard: what is certified, and under which assumption.
        capacity: the most that one ablation was taken to add to all counts together.
        unit: what margins and capacity are counted in: 1/unit of the most that one ablation can add to a count.
    """

    y: Int[Tensor, " B"]
    k: int
    clean: Bool[Tensor, " B"]
    certified: Bool[Tensor, " B"]
    margin: Int[Tensor, " B"]
    threat: Threat
    capacity: int
    guard: float
    unit: int = 1


def certify_top_k(
    votes: Votes | Scored,
    y: Int[Tensor, " B"],
    k: int,
    ablation: Ablation,
    threat: Threat | str,
    image_size: tuple[int, int],
    *,
    capacity: int | None = None,
    guard: float = 0.0,
) -> TopKCertificate:
    """Certify from the votes [B,N,K] of B images that class y stays among the k most voted; 1 ≤ k < K.

    `capacity` is the `Voting.capacity` of the rule that made the votes: 1 for top-1, floor(1/θ) under a threshold. None
    assumes nothing, that one ablation can vote for every class. Tight for one patch without close votes: for every
    refusal some rewriting of one touched set, within the capacity, ranks k classes before y. A close vote counts as
    absent for y and as present for its rivals. Several patches: what the rivals lack, and how many ablations are
    rewritten, are each bounded over all unions; for k = 1 as `certify_votes` has it.

    Raises `InvalidInput` for such a k, y or capacity as no votes of K classes have, and for votes beyond the capacity.
    """
    threat = as_threat(threat, image_size)
    check_votes(votes, ablation, image_size, guard)
    classes = votes.cast.shape[2]
    check_asked(y, k, len(votes.cast), classes)
    capacity = classes * votes.unit if capacity is None else capacity
    _check_capacity(votes, capacity)
    y = y.to(votes.cast.device, torch.int64)
    margins = []
    for one in threat.threats:
        one.check_fits(*image_size)
        margins.append(_margins(votes, y, k, ablation, one, image_size, capacity))
    margin = torch.stack(margins).amin(dim=0)
    clean = ranks(votes.counts, y) < k
    return TopKCertificate(y, k, clean, margin >= 0, margin, threat, capacity, guard, votes.unit)


def check_asked(y: Tensor, k: int, images: int, classes: int) -> None:
    """Refuse what is not one class for each image, and a k that `check_k` refuses."""
    check_k(k, classes)
    if y.shape != (images,) or y.is_floating_point() or y.dtype == torch.bool:
        raise InvalidInput(
            f"y has shape {tuple(y.shape)} and dtype {y.dtype}; name one class for each of {images} images"
        )
    if images and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise InvalidInput(f"y ranges from {int(y.min())} to {int(y.max())}; classes are numbered 0 to {classes - 1}")


def check_k(k: int, classes: int) -> None:
    """Refuse a number of classes that excludes none of them, or holds none."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k < classes:
        raise InvalidInput(
            f"k is {k!r}; among {classes} classes take 1 to {classes - 1}: every class is in the top {classes}"
        )


def _check_capacity(votes: Votes | Scored, capacity: int) -> None:
    if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < votes.unit:
        raise InvalidInput(
            f"capacity is {capacity!r}; one ablation can add {votes.unit} to a count, so give a whole number of at "
            "least that: voting.capacity(K), or None"
        )
    most = int(votes.cast.sum(dim=2).max()) if votes.cast.numel() else 0
    if most > capacity:
        raise InvalidInput(
            f"capacity is {capacity}, but an ablation adds {most} to all counts together; give the capacity of the "
            "rule that made the votes, voting.capacity(K), or None"
        )


def _margins(
    votes: Votes | Scored,
    y: Tensor,
    k: int,
    ablation: Ablation,
    threat: Patches,
    image_size: tuple[int, int],
    capacity: int,
) -> Int[Tensor, " B"]:
    """min over A of max over r ≤ k of floor((g_(k-r+1) + … + g_(k) + r - 1 - M·|A|)/r), M = u for r = 1.

    g_j = R_y - R_j - [j < y], one less than j lacks. A lead of y over the k-th strongest rival that the attacker can
    push below t is one that he could push below 0 were R_y less by t; and what k rivals lack after that, where it is
    positive, sums to the most over their r neediest of Σ (g_j + 1 - t).
    """
    touched, count = ablation.touched(threat, *image_size), threat.count
    sizes = touched.sizes.to(y.device, torch.int64)
    if count > 1:
        every = torch.ones(1, touched.num_ablations, 1, dtype=torch.int64, device=y.device)
        sizes = touched.worst_union(every, count)[:, 0]
    least = _least(votes, y, k, touched, count, votes.unit)
    margin = least[..., -1]
    if k > 1:
        lacking = least + votes.unit * sizes[:, None] if count == 1 else _least(votes, y, k, touched, count, 0)
        total = lacking.flip(-1).cumsum(-1)[..., 1:]
        r = torch.arange(2, k + 1, device=y.device)
        shared = torch.div(total + r - 1 - capacity * sizes[:, None], r, rounding_mode="floor")
        margin = torch.maximum(margin, shared.amax(dim=-1))
    return margin.amin(dim=1)


def _least(votes: Votes | Scored, y: Tensor, k: int, touched: Touched, count: int, raised: int) -> Int[Tensor, "B S k"]:
    """The k least of `leads` for each image and touched set, or the union of sets, ascending, in int64."""
    out = torch.full((len(y), len(touched.sizes) if count == 1 else 1, k), FAR[torch.int64], device=y.device)
    for rows, some in leads(votes, y, touched, count, raised, k):
        both = torch.cat([out[rows], some.long()], dim=2)
        out[rows] = both.topk(k, dim=2, largest=False).values
    return out
