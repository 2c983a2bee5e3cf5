"""Several ablations taken together: their votes are counted as one, and a patch touches what it touches in each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from itertools import accumulate

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.touched import Touched
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Placements


@dataclass(frozen=True)
class Union(Ablation):
    """The ablations of all `parts`, one part after the other; "columns:2+rows:2".

    A patch touches Σ |A_p| of the Σ N_p ablations, and a rival must overcome the lead in all parts together: a
    placement that is at its worst for one part need not be for another. (The argument of Levine & Feizi 2020, Section
    3, holds for any ablations.)
    """

    parts: tuple[Ablation, ...]

    def __post_init__(self) -> None:
        if len(self.parts) < 2 or any(isinstance(part, Union) for part in self.parts):
            raise InvalidInput(
                f"union parts are {', '.join(map(str, self.parts)) or 'none'}; name two ablations or more, none a union"
            )

    def counts(self, height: int, width: int) -> list[int]:
        """N of each part."""
        return [part.count(height, width) for part in self.parts]

    def count(self, height: int, width: int) -> int:
        return sum(self.counts(height, width))

    def masks(self, height: int, width: int, index: Int[Tensor, "..."] | None = None) -> Bool[Tensor, "... H W"]:
        if index is None:
            return torch.cat([part.masks(height, width) for part in self.parts])
        masks = torch.zeros(*index.shape, height, width, dtype=torch.bool, device=index.device)
        for part, own, local in self.shared_out(index, height, width):
            masks[own] = part.masks(height, width, local)
        return masks

    def shared_out(
        self, index: Int[Tensor, "..."], height: int, width: int
    ) -> list[tuple[Ablation, Bool[Tensor, "..."], Int[Tensor, " n"]]]:
        """For each part, a mask of the entries of `index` that are its ablations, and their numbers in it."""
        counts = self.counts(height, width)
        found = []
        for part, begin, count in zip(self.parts, accumulate([0, *counts]), counts, strict=False):
            own = (index >= begin) & (index < begin + count)
            found.append((part, own, index[own] - begin))
        return found

    def touched_by(self, placements: Placements) -> Touched:
        return UnionTouched([part.touched_by(placements) for part in self.parts])

    def __str__(self) -> str:
        return "+".join(map(str, self.parts))


class UnionTouched(Touched):
    """A set for each combination of the parts' sets that some placement touches; sums are the parts' sums, added."""

    def __init__(self, parts: list[Touched]) -> None:
        self._parts = parts
        of_placement = torch.stack([part.set_of_placement for part in parts], dim=1)
        self._sets, self.set_of_placement = torch.unique(of_placement, dim=0, return_inverse=True)
        chosen = zip(parts, self._sets.unbind(dim=1), strict=True)
        self.sizes = torch.stack([part.sizes[own] for part, own in chosen]).sum(dim=0)
        self.num_ablations = sum(part.num_ablations for part in parts)

    def member(self, sets: Int[Tensor, "..."]) -> Bool[Tensor, "... N"]:
        chosen = self._sets.to(sets.device)[sets].unbind(dim=-1)
        return torch.cat([part.member(own) for part, own in zip(self._parts, chosen, strict=True)], dim=-1)

    def sums(self, values: Tensor) -> Int[Tensor, "B S K"]:
        split = values.split([part.num_ablations for part in self._parts], dim=1)
        chosen = self._sets.to(values.device).unbind(dim=1)
        parts = zip(self._parts, split, chosen, strict=True)
        return reduce(torch.add, (part.sums(own).index_select(1, sets) for part, own, sets in parts))
