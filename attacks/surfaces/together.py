"""Placements of several patches chosen together, from the votes: each where it does most beside the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from attacks.surfaces.base import Site
from robustpatch.ablations.touched import Touched, sum_type
from robustpatch.certificates.lead import lead

_RIVALS = 3  # classes that are aimed at
_CHOSEN = 32  # choices of placements that are made, and put in order, at once


def sites_together(
    cast: Bool[Tensor, "N K"] | Int[Tensor, "N K"],
    unit: int,
    y: int,
    touched: Sequence[Touched],
    chance: torch.Generator,
) -> Iterator[Site]:
    """Placements of all patches, for ever, each with the class to be raised above y: those that leave y least first.

    `cast` are the votes, or the units of scores, of one clean image; `touched` is what each patch touches. Turning
    ablation n gains rival j at most v_y - v_j + unit. The patch that touches most starts, at each of its touched sets
    in the order of what turning that one gains; then each patch in turn goes to the set that gains most of what the
    others leave, and the starting patch once more. Among placements of equal sets one is drawn, among equal sets too.
    """
    kind, device = sum_type(cast), cast.device
    own, label = cast[:, y : y + 1].to(kind), torch.tensor(y, device=device)
    damage = (own - cast.to(kind) + unit).clamp(min=0)
    before = lead(own.sum(dtype=kind), cast.sum(dim=0, dtype=kind), label)
    first = max(range(len(touched)), key=lambda k: int(touched[k].sizes.max()))
    order = [first, *(k for k in range(len(touched)) if k != first), first]
    alone = before - touched[first].sums(damage[None])[0]
    rivals = alone.amin(dim=0).argsort(stable=True)[: min(_RIVALS, len(before) - 1)]
    while True:
        starts = alone[:, rivals].double()
        starts = starts + torch.rand(starts.shape, generator=chance, dtype=torch.float64).to(device)
        for some in starts.flatten().argsort().split(_CHOSEN):
            sets = torch.full((len(some), len(touched)), -1, device=device)
            sets[:, first], rival = torch.div(some, len(rivals), rounding_mode="floor"), rivals[some % len(rivals)]
            for k in order[1:]:
                left = damage.T[rival].masked_fill(_members(touched, sets, k), 0)
                gain = touched[k].sums(left[:, :, None])[:, :, 0].double()
                sets[:, k] = (gain + torch.rand(gain.shape, generator=chance).to(gain)).argmax(dim=1)
            gained = damage.T[rival].masked_fill(~_members(touched, sets), 0).sum(dim=1, dtype=kind)
            after = before[rival] - gained
            rows = after.argsort(stable=True)
            if bool((after < 0).any()):  # where y stays ahead whatever the patches show there is nothing to be found
                rows = rows[after[rows] < 0]
            for row in rows.tolist():
                yield tuple(_within(touched, sets[row].tolist(), chance)), int(rival[row])


def _members(touched: Sequence[Touched], sets: Int[Tensor, "M count"], but: int = -1) -> Bool[Tensor, "M N"]:
    """The ablations in any of these sets, one of each patch; those not chosen yet (-1), and that of `but`, left out."""
    found = torch.zeros(len(sets), touched[0].num_ablations, dtype=torch.bool, device=sets.device)
    for k, one in enumerate(touched):
        if k != but:
            found |= one.member(sets[:, k].clamp(min=0)) & (sets[:, k] >= 0)[:, None]
    return found


def _within(touched: Sequence[Touched], sets: list[int], chance: torch.Generator) -> Iterator[int]:
    """A placement of each patch, drawn among those that touch the set."""
    for one, s in zip(touched, sets, strict=True):
        places = (one.set_of_placement == s).nonzero()[:, 0]
        yield int(places[torch.randint(len(places), (), generator=chance)])
