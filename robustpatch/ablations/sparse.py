"""Sparse randomized ablation: k pixels kept at random, and the chance that a patch hits one (Levine & Feizi 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import expm1, inf

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from robustpatch.ablations.base import Ablation
from robustpatch.errors import InvalidInput, check_whole
from robustpatch.threats.base import Threat

_CELLS = 2**22  # random numbers drawn at once: 32 MiB


@dataclass(frozen=True)
class SparseAblation:
    """Keeps `keep` pixels, each set of so many as likely as any other, and hides the rest.

    There are C(H·W, keep) of them, too many to enumerate, so this is no `Ablation`: `sample` draws some, and
    `RandomizedClassifier` estimates the vote from those. (Levine & Feizi 2019, "Robustness certificates for sparse
    adversarial attacks by randomized ablation".) Raises `InvalidInput` for `keep` below one.
    """

    keep: int

    def __post_init__(self) -> None:
        check_whole("sparse keep", self.keep)

    def __str__(self) -> str:
        return f"sparse:{self.keep}"

    def check_fits(self, height: int, width: int) -> None:
        """Raise `InvalidInput` where an image of `height` × `width` has fewer than `keep` pixels."""
        if self.keep > height * width:
            raise InvalidInput(
                f"sparse keep is {self.keep}, more than the image's {height * width} pixels; take at most "
                f"{height * width}"
            )

    def sample(self, n: int, height: int, width: int, generator: torch.Generator) -> Bool[Tensor, "n H W"]:
        """n independent sets of kept pixels, drawn without replacement; `generator` is one of the CPU's."""
        self.check_fits(height, width)
        pixels = height * width
        kept = torch.zeros(n, pixels, dtype=torch.bool)
        # The `keep` largest of d numbers. In double precision, since the order of equal ones is not left to chance.
        for rows in kept.split(max(1, _CELLS // pixels)):
            order = torch.rand(len(rows), pixels, generator=generator, dtype=torch.float64)
            rows.scatter_(1, order.topk(self.keep, dim=1, sorted=False).indices, True)
        return kept.unflatten(1, (height, width))

    def log_untouched(self, pixels: int, height: int, width: int) -> float:
        """log of the chance that none of that many given `pixels` is kept, log C(d-ρ, k) - log C(d, k), d = H·W.

        C(d-ρ,k)/C(d,k) = Π (1 - max(k,ρ)/(d-i)) over i < min(k,ρ), since k and ρ may change places; a sum of log1p has
        no large terms to cancel, as the logarithms of factorials have (1e-10 at 299×299). -inf where d - ρ < k.
        """
        self.check_fits(height, width)
        total = height * width
        few, many = sorted((self.keep, min(max(pixels, 0), total)))
        if many > total - few:
            return -inf
        return float(np.log1p(-many / (total - np.arange(few, dtype=np.float64))).sum())

    def touched_chance(self, threat: Threat, height: int, width: int) -> float:
        """The largest chance, over placements and members of the threat, that a kept pixel lies under the patch.

        1 - C(d-ρ,k)/C(d,k), with ρ pixels under the patches, the largest of each added up and at most d: as many where
        they do not overlap, and no more where they do. Accurate where it is small, too.
        """
        most = max(sum(family.pixels for family in one.families(height, width)) for one in threat.threats)
        return -expm1(self.log_untouched(min(most, height * width), height, width))


@dataclass(frozen=True)
class Draws(Ablation):
    """`number` sets of kept pixels, independently drawn from `source` with `seed`: equal values keep equal pixels."""

    source: SparseAblation
    number: int
    seed: int

    def count(self, height: int, width: int) -> int:
        self.source.check_fits(height, width)
        return self.number

    def masks(self, height: int, width: int, index: Int[Tensor, "..."] | None = None) -> Bool[Tensor, "... H W"]:
        kept = _drawn(self, height, width)
        return kept.clone() if index is None else kept[index.cpu()].to(index.device)

    def __str__(self) -> str:
        return f"{self.number} draws of {self.source}"


@lru_cache(maxsize=4)
def _drawn(draws: Draws, height: int, width: int) -> Bool[Tensor, "n H W"]:
    return draws.source.sample(draws.number, height, width, torch.Generator().manual_seed(draws.seed))
