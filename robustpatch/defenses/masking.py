"""Sets of rectangular masks, such that any patch lies wholly inside one of them: what PatchCleanser hides."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches, Placements, Threat


@dataclass(frozen=True)
class MaskSet:
    """n = len(rows)·len(columns) rectangles of `height` × `width`; their top-left corners are all (row, column).

    Those of `for_patch` hide every placement of that patch (of several shapes, of each): with k masks on an axis of n
    pixels and a patch of m, they begin every s = ceil((n - m + 1) / k) pixels, the last one flush with the border, and
    are m + s - 1 long. (Xiang et al. 2022, Section 3.1.)

    `count` patches are hidden by `count` masks together: every choice of so many is a *view* of the image, and the
    *unions* are the views and the choices of any two of them. For one patch views are the single masks, and unions
    those and the pairs: 666 of 6×6.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    height: int
    width: int
    image_size: tuple[int, int]
    count: int = 1

    @classmethod
    def for_patch(cls, patch: Patches, masks: tuple[int, int], image_size: tuple[int, int]) -> MaskSet:
        """`masks` (down, across): how many along each axis, at most; fewer where that many would repeat themselves.

        Raises `InvalidInput`.
        """
        extents = [family.extent for family in set(patch.families(*image_size))]
        rectangle = max(height for height, _ in extents), max(width for _, width in extents)
        if min(masks) < 1:
            raise InvalidInput(f"masks is {masks[0]}x{masks[1]}; at least one is needed along each axis")
        rows, height = _axis(image_size[0], rectangle[0], masks[0])
        columns, width = _axis(image_size[1], rectangle[1], masks[1])
        return cls(rows, columns, height, width, image_size, patch.count)

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def hidden(self) -> Bool[Tensor, "n H W"]:
        """The pixels that each mask hides; row-major order."""
        down = _within(self.rows, self.height, self.image_size[0])
        across = _within(self.columns, self.width, self.image_size[1])
        return (down[:, None, :, None] & across[None, :, None, :]).flatten(0, 1)

    def covers(self, threat: Threat) -> bool:
        """Tells whether each placement of each patch lies inside some mask, and there are masks for all patches."""
        return all(
            one.count <= self.count
            and all(bool(self._holding(family).any(dim=1).all()) for family in set(one.families(*self.image_size)))
            for one in threat.threats
        )

    def hiding_at(self, patch: Patches) -> Bool[Tensor, "L V"]:
        """Marks the views that hide one of the patches wholly, at each of its placements. Raises `InvalidInput` for
        patches of different shapes.
        """
        return self._hiding(patch.family(*self.image_size))

    def _hiding(self, placements: Placements) -> Bool[Tensor, "L V"]:
        return self._holding(placements)[:, self.views].any(dim=2)

    def _holding(self, placements: Placements) -> Bool[Tensor, "L n"]:
        """Marks the masks that hold all of the patch, at each of its placements."""
        if placements.rectangle is None:
            return placements.inside(self.hidden())
        down = _holding(self.rows, self.height, placements.rectangle[0], self.image_size[0])
        across = _holding(self.columns, self.width, placements.rectangle[1], self.image_size[1])
        return (down[:, None, :, None] & across[None, :, None, :]).flatten(2).flatten(0, 1)

    def hiding(self, threat: Threat) -> Bool[Tensor, "S V"]:
        """The sets of views that hide all patches of the threat at once, of all choices of placements."""
        found = []
        for one in threat.threats:
            families = one.families(*self.image_size)
            single = {family: torch.unique(self._hiding(family), dim=0) for family in set(families)}
            sets = single[families[0]]
            for family in families[1:]:
                sets = torch.unique((sets[:, None] & single[family]).flatten(0, 1), dim=0)
            found.append(sets)
        return torch.unique(torch.cat(found), dim=0)

    @property
    def views(self) -> Int[Tensor, "V m"]:
        """The masks of each view: every choice of `count` of them."""
        return _unions(len(self), self.count)[0]

    @property
    def unions(self) -> Int[Tensor, "U p"]:
        """The masks of each union, the last repeated; the first V are the views."""
        return _unions(len(self), self.count)[1]

    @property
    def pair(self) -> Int[Tensor, "V V"]:
        """Returns the number of the union that two views make."""
        return _unions(len(self), self.count)[2]


def _axis(length: int, patch: int, masks: int) -> tuple[tuple[int, ...], int]:
    stride = -(-(length - patch + 1) // masks)
    side = patch + stride - 1
    last = length - side
    return tuple(sorted({min(i * stride, last) for i in range(masks)})), side


def _within(starts: tuple[int, ...], side: int, length: int) -> Bool[Tensor, "k n"]:
    first = torch.tensor(starts)[:, None]
    pixel = torch.arange(length)
    return (pixel >= first) & (pixel < first + side)


def _holding(starts: tuple[int, ...], side: int, patch: int, length: int) -> Bool[Tensor, "l k"]:
    place, first = torch.arange(length - patch + 1)[:, None], torch.tensor(starts)
    return (first <= place) & (place + patch <= first + side)


@lru_cache(maxsize=8)
def _unions(masks: int, count: int) -> tuple[Int[Tensor, "V m"], Int[Tensor, "U p"], Int[Tensor, "V V"]]:
    count = min(count, masks)
    sizes = range(count, min(2 * count, masks) + 1)
    members = [some for size in sizes for some in combinations(range(masks), size)]
    number = {frozenset(some): u for u, some in enumerate(members)}
    views = [frozenset(some) for some in combinations(range(masks), count)]
    pair = torch.zeros(len(views), len(views), dtype=torch.long)
    for s, one in enumerate(views):
        pair[s, s:] = torch.tensor([number[one | other] for other in views[s:]])
    most = sizes[-1]
    padded = torch.tensor([some + some[-1:] * (most - len(some)) for some in members])
    return torch.tensor([sorted(view) for view in views]), padded, torch.maximum(pair, pair.T)
