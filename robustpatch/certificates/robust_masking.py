"""Robust masking of whole units: the window that speaks loudest for a class is not heard. Integers, no network.

For each class k, n_k[w] are the units (or votes) that the ablations of a window w contribute to it, and n_k those of
all. The window with the largest n_k[w] is masked if n_k[w] > t·n_k. The prediction is the class with most left.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from robustpatch.ablations.base import Ablation
from robustpatch.certificates.lead import lead
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches
from robustpatch.voting.votes import Scored, Votes, first_argmax

_LARGEST = 2**27  # cells of the matrix of windows and ablations
_CELLS = 2**22  # of windows times sets that are worked on at once


@lru_cache(maxsize=16)
def incidence(ablation: Ablation, threat: Patches, image_size: tuple[int, int]) -> Bool[Tensor, "S N"]:
    """The distinct sets of ablations that one patch of the threat can touch, as rows. Not to be written to."""
    touched = ablation.touched(threat, *image_size)
    if len(touched.sizes) * touched.num_ablations > _LARGEST:
        raise InvalidInput(
            f"{ablation} has {touched.num_ablations:,} ablations and {len(touched.sizes):,} windows for {threat} "
            f"patches on {image_size[0]}x{image_size[1]}, more than masking can list; give the ablation a larger stride"
        )
    return touched.member(torch.arange(len(touched.sizes)))


@dataclass(frozen=True)
class Masking:
    """`windows` [V,N]: the sets of ablations that may be masked, one for each class. `threshold` is t, 0 to 1."""

    windows: Bool[Tensor, "V N"]
    threshold: Fraction

    def covers(self, sets: Bool[Tensor, "S N"]) -> bool:
        """True when every set lies within some window."""
        return bool(_within(sets, self.windows).any(dim=1).all())

    def remainder(self, cast: Tensor) -> tuple[Bool[Tensor, "B N K"], Int[Tensor, "B K"]]:
        """The contributions `cast` [B,N,K] that are heard, as a mask, and their sums over the ablations."""
        windows = self.windows.to(cast.device)
        loudest, which = _sums(windows, cast).max(dim=1)
        total = cast.sum(dim=1, dtype=torch.int64)
        masked = self._exceeds(loudest, total)
        heard = ~(windows[which] & masked[..., None]).transpose(1, 2)
        return heard, total - torch.where(masked, loudest, 0)

    def _exceeds(self, part: Tensor, whole: Tensor) -> Bool[Tensor, "..."]:
        """part > t·whole."""
        return part * self.threshold.denominator > whole * self.threshold.numerator

    def margins(
        self, votes: Votes | Scored, prediction: Int[Tensor, " B"], sets: Bool[Tensor, "S N"]
    ) -> Int[Tensor, "B S"]:
        """At least how far c stays ahead whatever the ablations of each set A contribute; ≥ 0: c wins."""
        return self.rival_margins(votes, prediction, sets).amin(dim=2)

    def rival_margins(
        self, votes: Votes | Scored, prediction: Int[Tensor, " B"], sets: Bool[Tensor, "S N"]
    ) -> Int[Tensor, "B S K"]:
        """At least how far c stays ahead of each rival j; for j = c itself a number beyond all others.

        A patch can make of the contributions of A what it likes, between 0 and the
        range u; those outside are at least `votes.lower`, at most `votes.upper`.

        - What is left of c is the least of n_c without A, where nothing is masked, and, over the windows w that the
          patch may get masked, of n_c without A and w. It may get w masked iff P > t·(P + O): P counts w's
          contributions at their most, u for each in A, and O those outside w and A at their least.
        - What is left of a rival j is at most R, the least n_j without a window that holds A, where a window is masked:
          none leaves less than the loudest. Where none is masked, such a window contributes m with m ≤ t·(R + m), so
          that all contribute at most R/(1 - t), and at most n_j without A and u·|A|: all that is known of a set that
          lies in no window.

        With t = 0 and a window for each A this is Xiang et al.'s: n_c without A less its loudest window there, against
        n_j without A. With t = 1 it is the exact certificate of smoothing. What stands against a patch stands against
        every smaller one.
        """
        sets, windows = sets.to(prediction.device), self.windows.to(prediction.device)
        lower, upper, unit = votes.lower.long(), votes.upper.long(), votes.unit
        own = prediction[:, None, None].expand(-1, lower.shape[1], 1)
        least, most = lower.gather(2, own)[..., 0], upper.gather(2, own)[..., 0]
        loud = self._loudest_rival(upper, sets, windows, unit)
        return lead(self._least_own(least, most, sets, windows, unit), loud, prediction[:, None])

    def unnoticed_margins(
        self, votes: Votes | Scored, prediction: Int[Tensor, " B"], sets: Bool[Tensor, "S N"]
    ) -> Int[Tensor, "B S K"]:
        """At least how far c stays ahead of each rival j that wins with no window above t·n_j, where nothing is masked;
        for j = c itself a number beyond all others.

        c keeps at least n_c without A. A rival of which a window that holds A contributes m ≤ t·n_j, and so all of it
        at most R/(1 - t), with R, n_j without that window, at its least: as above.
        """
        sets = sets.to(prediction.device)
        lower, upper = votes.lower.long(), votes.upper.long()
        own = prediction[:, None, None].expand(-1, lower.shape[1], 1)
        least = lower.gather(2, own)
        free = least.sum(dim=1) - _sums(sets, least)[..., 0]
        loud = self._loudest_rival(upper, sets, self.windows.to(prediction.device), votes.unit)
        return lead(free, loud, prediction[:, None])

    def answer_or_alert(self, cast: Tensor) -> Int[Tensor, " B"]:
        """The class to which the contributions `cast` [B,N,K] add up most, the lowest of equals; -1, an alert, where a
        window holds more than t of that.
        """
        answer = first_argmax(cast.sum(dim=1, dtype=torch.int64))
        own = cast.gather(2, answer[:, None, None].expand(-1, cast.shape[1], 1))
        loudest = _sums(self.windows.to(cast.device), own)[..., 0].amax(dim=1)
        return torch.where(self._exceeds(loudest, own.sum(dim=(1, 2), dtype=torch.int64)), -1, answer)

    def _least_own(
        self, least: Int[Tensor, "B N"], most: Int[Tensor, "B N"], sets: Tensor, windows: Tensor, unit: int
    ) -> Int[Tensor, "B S"]:
        found = []
        images = max(1, _CELLS // (len(sets) * len(windows)))
        shared = sets.double() @ windows.double().T  # how many ablations of A the window holds
        for low, high in zip(least.split(images), most.split(images), strict=True):
            free = low.sum(dim=1)[:, None] - _sums(sets, low[..., None])[..., 0]  # without A
            lost = _apart(low, sets, windows)  # what w holds of it
            masked = free[..., None] - lost
            loudest = _apart(high, sets, windows) + unit * shared.long()
            can = self._exceeds(loudest, loudest + masked)
            found.append(torch.where(can, masked, free[..., None]).amin(dim=2))
        return torch.cat(found) if found else least.new_zeros(0, len(sets))

    def _loudest_rival(
        self, upper: Int[Tensor, "B N K"], sets: Tensor, windows: Tensor, unit: int
    ) -> Int[Tensor, "B S K"]:
        total = upper.sum(dim=1)[:, None]
        most = total - _sums(sets, upper) + unit * sets.sum(dim=1)[:, None]
        t = self.threshold
        if t == 1:
            return most
        left = torch.full_like(most, torch.iinfo(torch.int64).max // t.denominator)
        outside = total - _sums(windows, upper)
        for pairs in _within(sets, windows).nonzero().split(max(1, _CELLS // max(1, upper[:, 0].numel()))):
            seen = outside[:, pairs[:, 1]]
            left.scatter_reduce_(1, pairs[None, :, :1].expand_as(seen), seen, "amin")
        unmasked = torch.div(left * t.denominator, t.denominator - t.numerator, rounding_mode="floor")
        return torch.minimum(most, unmasked)


def _within(sets: Bool[Tensor, "S N"], windows: Bool[Tensor, "V N"]) -> Bool[Tensor, "S V"]:
    """True where the window holds all of the set."""
    return sets.double() @ (~windows).double().T == 0


def _sums(sets: Bool[Tensor, "S N"], values: Tensor) -> Int[Tensor, "B S K"]:
    """Σ of [B,N,K] over each set, exact: float64 holds every integer below 2^53."""
    return torch.einsum("sn,bnk->bsk", sets.double(), values.double()).long()


def _apart(values: Int[Tensor, "B N"], sets: Bool[Tensor, "S N"], windows: Bool[Tensor, "V N"]) -> Int[Tensor, "B S V"]:
    """Σ of the values over each window without each set."""
    outside = torch.where(sets, 0, values[:, None]).double()
    return (outside @ windows.double().T).long()
