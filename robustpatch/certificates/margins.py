"""The margins of a prediction against one patch: its lead after the worst that the patch can make of the votes.

n_k are the votes for class k, n_k[A] those cast by the ablations in A, c is the prediction: the class with the most
votes, the lowest index winning ties. A patch controls the votes of the set A that its placement touches and no others:
there it can withdraw every vote for c and cast one for a rival j. Of scores that are summed, n_k counts units of 2^-16
of a contribution's range, and one touched ablation can take away and give that whole range u (u = 1 for votes). Close
votes count against c: as absent for c, and as present for j.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.touched import Touched
from robustpatch.certificates.lead import lead
from robustpatch.errors import InvalidInput
from robustpatch.voting.votes import Scored, Votes

_CACHED = 2**19  # int32 cells worked on at once on a CPU: what its cache holds
_CELLS = 2**24  # and on a GPU: some hundred MiB of working memory


def check_votes(votes: Votes | Scored, ablation: Ablation, image_size: tuple[int, int], guard: float = 0.0) -> None:
    """Refuse votes that are not those of every ablation of such an image, for two classes or more; and summed scores
    that were counted with less slack than the guard's. Raises `InvalidInput`.
    """
    n, cast = ablation.count(*image_size), votes.cast
    if cast.shape != votes.close.shape or cast.ndim != 3 or cast.shape[1] != n or cast.shape[2] < 2:
        raise InvalidInput(
            f"votes have shapes {tuple(cast.shape)} (cast) and {tuple(votes.close.shape)} (close); {ablation} on "
            f"{image_size[0]}x{image_size[1]} needs [B, {n}, K] twice, with at least two classes"
        )
    if votes.unit > 1 and votes.slack < guard * votes.unit:
        raise InvalidInput(
            f"guard is {guard}, but the scores were counted with a slack of {votes.slack} units of 1/{votes.unit}; "
            "count them with that guard"
        )


def paper_margins(votes: Votes | Scored, c: Int[Tensor, " B"], affected: int) -> Int[Tensor, " B"]:
    """min over j ≠ c of n_c - n_j - [j < c] - 2uΔ, Δ = `affected`: the most ablations that a patch touches.

    (Levine & Feizi 2020, Algorithms 1 and 2.)
    """
    return (
        lead(_of_class(votes.lower, c).sum(dim=1)[:, 0], votes.upper.sum(dim=1), c).amin(dim=1)
        - 2 * votes.unit * affected
    )


def exact_margins(votes: Votes | Scored, c: Int[Tensor, " B"], touched: Touched, count: int) -> Int[Tensor, "B S"]:
    """min over j ≠ c of n_c - n_j - [j < c] - damage, for each touched set; [B,1] for the worst union of `count`.

    The damage of a set A, Σ over A of v_c - v_j + u, is what withdrawing the votes for c and casting votes for j gains.
    """
    sets = len(touched.sizes) if count == 1 else 1
    out = torch.full((len(c), sets), torch.iinfo(torch.int64).max, device=c.device)
    for rows, margins in leads(votes, c, touched, count, votes.unit):
        out[rows] = torch.minimum(out[rows], margins.amin(dim=2))
    return out


def leads(
    votes: Votes | Scored, c: Int[Tensor, " B"], touched: Touched, count: int, raised: int, k: int = 1
) -> Iterator[tuple[slice, Int[Tensor, "b S J"]]]:
    """n_c - n_j - [j < c] - Σ over A of (v_c - v_j + raised) for some images and rivals j after the other, with `rows`.

    For each touched set A; of the worst union of `count` sets, [b,1,J], at most that for any. `raised` is what each
    touched ablation gives j: the unit, or nothing. Together the rivals hold the k least of each image and set. For
    j = c, and beyond, a number that no lead comes near.
    """
    cells = max(touched.num_ablations, len(touched.sizes) ** (2 if count > 1 and touched.exact_unions else 1))
    kind = votes.sums
    budget = _CACHED if c.device.type == "cpu" else _CELLS
    images = max(1, budget // (cells * votes.cast.shape[2]))
    for first in range(0, len(c), images):
        rows = slice(first, first + images)
        some = votes.of(rows)
        own, upper = _of_class(some.lower, c[rows]).to(kind), some.upper
        for rivals in _rivals(upper, k).split(max(1, budget // (cells * images))):
            j = upper.index_select(2, rivals).to(kind)
            damage = own - j + raised
            lost = touched.sums(damage) if count == 1 else touched.worst_union(damage.clamp(min=0), count)[:, None]
            before = lead(own.sum(dim=1, dtype=kind)[:, 0], j.sum(dim=1, dtype=kind), c[rows], rivals)
            yield rows, before[:, None] - lost


def rival_margins(votes: Votes | Scored, c: Int[Tensor, " B"], touched: Touched) -> Int[Tensor, "B S K"]:
    """n_c - n_c[A] - (n_j - n_j[A] + u·|A| + [j < c]) for every touched set A and rival j.

    This is the exact certificate's margin before the least of it is taken: below zero where the attacker may have it in
    his power to raise j above c. For j = c itself a number beyond all others. Memory O(B·N·K + B·S·K).
    """
    kind = votes.sums
    own, upper = _of_class(votes.lower, c).to(kind), votes.upper.to(kind)
    before = lead(own.sum(dim=1, dtype=kind)[:, 0], upper.sum(dim=1, dtype=kind), c)
    return before[:, None] - touched.sums(own - upper + votes.unit)


def _of_class(values: Tensor, c: Int[Tensor, " B"]) -> Tensor:
    return values.gather(2, c[:, None, None].expand(-1, values.shape[1], 1))


def _rivals(upper: Tensor, k: int) -> Int[Tensor, " J"]:
    """The classes that the k worst are among: those with a vote in some image, and the k + 1 lowest without.

    All classes without a vote cost c the same but for ties, so the lowest k are enough, and one more for c itself.
    """
    voted = (upper != 0).flatten(0, 1).any(dim=0)
    return torch.cat([voted.nonzero()[:, 0], (~voted).nonzero()[: k + 1, 0]])
