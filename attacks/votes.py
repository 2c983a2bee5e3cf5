"""The vote-level adversary: the worst that any base classifier could be made to do, given the clean votes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, product
from math import comb, prod

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.touched import Touched
from robustpatch.certificates.lead import lead, least_lead
from robustpatch.certificates.margins import rival_margins
from robustpatch.threats.base import Patches
from robustpatch.voting.votes import Scored, Votes, first_argmax

_UNIONS = 20_000
_CELLS = 2**19  # margins worked on at once: what a CPU's cache holds


@dataclass(frozen=True)
class WorstVotes:
    """`refuted` images get another prediction from `votes`, which differ from the clean ones in the touched set alone.

    Attributes:
        placement: Int[B,count], the numbers of the rectangles' placements. rival: Int[B], the class raised.
        lead: Int[B], by how many votes (units) the prediction then survives: < 0 exactly where it is refuted.
        touched: Int[B], how many ablations the placement touches. votes: Bool[B,N,K], or the units of scores.
    """

    refuted: Bool[Tensor, " B"]
    placement: Int[Tensor, "B count"]
    rival: Int[Tensor, " B"]
    lead: Int[Tensor, " B"]
    touched: Int[Tensor, " B"]
    votes: Bool[Tensor, "B N K"] | Int[Tensor, "B N K"]


def worst_votes(
    cast: Bool[Tensor, "B N K"] | Int[Tensor, "B N K"], ablation: Ablation, threat: Patches, image_size: tuple[int, int]
) -> WorstVotes:
    """Turn every ablation that the cheapest placement touches from the prediction to the cheapest rival. `cast`: votes,
    or the units of scores (`Scored.cast`), of which the rival gets all and every other class none.

    No attack on any base classifier with these clean votes does more: an image that is not refuted here is safe, and
    one that is refuted but not broken by a real patch is safe only because of what this network sees in a real patch.
    It is the exact certificate's worst case, at guard 0, for one patch at a time in O(B·(N + S)·K).

    For several patches all unions of touched sets are tried, up to 20,000 of them; beyond that they are gathered
    greedily, and an image that is not refuted may still be refutable.
    """
    families = threat.families(*image_size)
    known = {family: ablation.touched_at(family) for family in dict.fromkeys(families)}
    touched = [known[family] for family in families]
    clean = _clean(cast)
    prediction = first_argmax(clean.counts)
    sets, rival = _worst(clean, prediction, touched)
    member = torch.zeros(cast.shape[:2], dtype=torch.bool, device=cast.device)
    placement = torch.zeros_like(sets)
    for k, one in enumerate(touched if len(cast) else ()):
        member |= one.member(sets[:, k])
        placement[:, k] = _first_placement(one).to(cast.device)[sets[:, k]]
    turned = (torch.nn.functional.one_hot(rival, cast.shape[2]) * clean.unit).to(cast.dtype)[:, None]
    votes = torch.where(member[:, :, None], turned, cast)
    counts = _clean(votes).counts
    return WorstVotes(
        refuted=first_argmax(counts) != prediction,
        placement=placement,
        rival=rival,
        lead=least_lead(counts, prediction),
        touched=member.sum(dim=1),
        votes=votes,
    )


def _first_placement(touched: Touched) -> Int[Tensor, " S"]:
    """The first of the placements that touch each set."""
    numbers = torch.arange(len(touched.set_of_placement))
    first = torch.zeros(len(touched.sizes), dtype=torch.long)
    return first.scatter_reduce_(0, touched.set_of_placement, numbers, "amin", include_self=False)


def _clean(cast: Tensor) -> Votes | Scored:
    """The votes without any that are close, the scores without slack."""
    return Votes(cast, torch.zeros_like(cast)) if cast.dtype == torch.bool else Scored(cast, 0)


def _worst(
    votes: Votes | Scored, prediction: Int[Tensor, " B"], touched: list[Touched]
) -> tuple[Int[Tensor, "B count"], Int[Tensor, " B"]]:
    """The sets, one of each patch, and the rival of least lead, of each image."""
    if len(touched) == 1:
        one, classes = touched[0], votes.cast.shape[2]
        rows = torch.arange(len(prediction)).split(max(1, _CELLS // (max(one.num_ablations, len(one.sizes)) * classes)))
        margins = [rival_margins(votes.of(some), prediction[some], one).flatten(1) for some in rows if len(some)]
        worst = torch.cat([prediction[:0], *(first_argmax(-each) for each in margins)])
        return torch.div(worst, classes, rounding_mode="floor")[:, None], worst % classes
    found = [_worst_union(votes.of(slice(i, i + 1)), c, touched) for i, c in enumerate(prediction)]
    sets = torch.tensor([sets for sets, _ in found], device=prediction.device, dtype=torch.long)
    rival = torch.tensor([rival for _, rival in found], device=prediction.device, dtype=torch.long)
    return sets.reshape(len(found), len(touched)), rival


def _worst_union(votes: Votes | Scored, prediction: Tensor, touched: list[Touched]) -> tuple[list[int], int]:
    """The sets, one of each patch, and the rival of least lead, of one image."""
    cast = votes.cast[0]
    own = cast.gather(1, prediction.expand(len(cast), 1))
    damage = own.to(votes.counts.dtype) - cast.to(votes.counts.dtype) + votes.unit
    counts = cast.sum(dim=0)
    before = lead(counts[prediction], counts, prediction)
    best: tuple[int, list[int], int] | None = None
    for sets in _unions(touched, damage):
        member = _union(touched, sets, cast.device)
        leads = before - damage[member].sum(dim=0)
        rival = int(leads.argmin())
        if best is None or int(leads[rival]) < best[0]:
            best = int(leads[rival]), sets, rival
    assert best is not None
    return best[1], best[2]


def _union(touched: list[Touched], sets: Iterable[int], device: torch.device) -> Bool[Tensor, " N"]:
    """The ablations in any of these sets, one of each patch."""
    members = [one.member(torch.tensor(s, device=device)) for one, s in zip(touched, sets, strict=True)]
    return torch.stack(members).any(dim=0)


def _unions(touched: list[Touched], damage: Int[Tensor, "N K"]) -> Iterator[list[int]]:
    sets, count = len(touched[0].sizes), len(touched)
    if all(one is touched[0] for one in touched):
        distinct = min(count, sets)
        if comb(sets, distinct) <= _UNIONS:
            for some in combinations(range(sets), distinct):
                yield [*some, *some[:1] * (count - distinct)]
            return
    elif prod(len(one.sizes) for one in touched) <= _UNIONS:
        for chosen in product(*(range(len(one.sizes)) for one in touched)):
            yield list(chosen)
        return
    for rival in range(damage.shape[1]):
        left, chosen = damage[:, rival : rival + 1].clone(), []
        for one in touched:
            chosen.append(int(one.sums(left[None])[0, :, 0].argmax()))
            left[one.member(torch.tensor(chosen[-1], device=left.device))] = 0
        yield chosen
