"""Sets of masks, such that any patch lies wholly inside one of them: what PatchCleanser hides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches, Placements, Threat


class MaskSet(ABC):
    """n masks for images of `image_size`, each a set of pixels.

    `count` patches are hidden by `count` masks together: every choice of so many is a *view* of the image, and the
    *unions* are the views and the choices of any two of them. For one patch views are the single masks, and unions
    those and the pairs: 666 of 6×6.
    """

    image_size: tuple[int, int]
    count: int

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def hidden(self) -> Bool[Tensor, "n H W"]:
        """The pixels that each mask hides; row-major order."""

    @property
    def rectangles(self) -> dict[str, Any] | None:
        """The corners and sides of masks that are all rectangles of one size; None of others."""
        return None

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
        return placements.inside(self.hidden())

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


@dataclass(frozen=True)
class Boxes(MaskSet):
    """n = len(rows)·len(columns) rectangles of `height` × `width`; their top-left corners are all (row, column).

    Those of `for_patch` hide every placement of that patch (of several shapes, of each): with k masks on an axis of n
    pixels and a patch of m, they begin every s = ceil((n - m + 1) / k) pixels, the last one flush with the border, and
    are m + s - 1 long. (Xiang et al. 2022, Section 3.1.)
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    height: int
    width: int
    image_size: tuple[int, int]
    count: int = 1

    @classmethod
    def for_patch(cls, patch: Patches, masks: tuple[int, int], image_size: tuple[int, int]) -> Boxes:
        """`masks` (down, across): how many along each axis, at most; fewer where that many would repeat themselves.

        Raises `InvalidInput`.
        """
        extents = [family.extent for family in set(patch.families(*image_size))]
        rectangle = max(height for height, _ in extents), max(width for _, width in extents)
        _check_masks(masks)
        rows, height = _axis(image_size[0], rectangle[0], masks[0])
        columns, width = _axis(image_size[1], rectangle[1], masks[1])
        return cls(rows, columns, height, width, image_size, patch.count)

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    @property
    def rectangles(self) -> dict[str, Any]:
        corners = {"rows": list(self.rows), "columns": list(self.columns)}
        return {**corners, "height": self.height, "width": self.width}

    def hidden(self) -> Bool[Tensor, "n H W"]:
        down = _within(self.rows, self.height, self.image_size[0])
        across = _within(self.columns, self.width, self.image_size[1])
        return (down[:, None, :, None] & across[None, :, None, :]).flatten(0, 1)

    def _holding(self, placements: Placements) -> Bool[Tensor, "L n"]:
        if placements.rectangle is None:
            return super()._holding(placements)
        down = _holding(self.rows, self.height, placements.rectangle[0], self.image_size[0])
        across = _holding(self.columns, self.width, placements.rectangle[1], self.image_size[1])
        return (down[:, None, :, None] & across[None, :, None, :]).flatten(2).flatten(0, 1)


@dataclass(frozen=True, eq=False)
class Outlines(MaskSet):
    """Masks that hide no pixel more than they have to: each the union of the footprints at the places it is for.

    Those of `for_threat` part the places by the middle m of what the patch covers there: with k masks on an axis,
    middles from a to b, and s = (floor(b - a) + 1) / k of them to a mask, the i-th is for a + i·s ≤ m < a + (i+1)·s. So
    each place of each patch lies inside one mask, whatever the shape. Of a disc, masks are without the corners that
    `Boxes` have; of a patch in a region, without what it cannot reach.
    """

    pixels: Bool[Tensor, "n H W"]
    image_size: tuple[int, int]
    count: int = 1

    @classmethod
    def for_threat(cls, threat: Threat, masks: tuple[int, int], image_size: tuple[int, int]) -> Outlines:
        """`masks` (down, across): how many along each axis, at most; fewer where no place would be left for one.

        Raises `InvalidInput`.
        """
        _check_masks(masks)
        families = list(dict.fromkeys(family for one in threat.threats for family in one.families(*image_size)))
        middles = [_doubled_middles(family) for family in families]
        first, last = torch.cat(middles).amin(dim=0), torch.cat(middles).amax(dim=0)
        doubled = 2 * ((last - first) // 2 + 1)
        pixels = torch.zeros(masks[0] * masks[1], *image_size, dtype=torch.bool)
        for family, middle in zip(families, middles, strict=True):
            down, across = ((middle - first) * torch.tensor(masks) // doubled).unbind(dim=1)
            number = down * masks[1] + across
            pixels |= family.covered(torch.arange(len(pixels))[:, None] == number)
        used = pixels.flatten(1).any(dim=1)
        return cls(pixels[used], image_size, max(one.count for one in threat.threats))

    def __len__(self) -> int:
        return len(self.pixels)

    def hidden(self) -> Bool[Tensor, "n H W"]:
        return self.pixels


def _check_masks(masks: tuple[int, int]) -> None:
    if min(masks) < 1:
        raise InvalidInput(f"masks is {masks[0]}x{masks[1]}; at least one is needed along each axis")


def _doubled_middles(placements: Placements) -> Int[Tensor, "L 2"]:
    """Twice the middle (row, column) of the box around what the patch covers, at each place: a whole number."""
    patterns, places = placements.sets()
    sides = torch.tensor([pattern.shape for pattern in patterns])
    return 2 * places[:, 1:] + sides[places[:, 0]] - 1


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
