"""Neighbouring placements of a patch, tried together: the pixels that any of them covers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import comb

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches, Placements

_SIDE = 3  # corners along either axis that are first tried together
_MOST = 10_000  # choices of regions for several patches


@dataclass(frozen=True)
class Regions:
    """M jobs: of image `image[m]`, every anchor of each patch within `corners[m]` = (first row, last row, first
    column, last column), Int[M,count,4], both ends included. `family`: where the patches can be, all of one shape.

    Taken from the end, so that the halves of what failed, joined there, come next.
    """

    family: Placements
    image: Int[Tensor, " M"]
    corners: Int[Tensor, "M count 4"]

    @classmethod
    def of(
        cls, threat: Patches, size: tuple[int, int], images: int, device: torch.device | str, side: int = _SIDE
    ) -> Regions:
        """All placements of the threat on so many images of `size`, `side`² anchors together; of several patches, every
        choice of their regions. The middle of the image is at the end. Raises `InvalidInput` for too many choices, and
        for patches of different shapes.
        """
        family = threat.family(*size)
        last = family.anchors.amax(dim=0)
        along = [[(first, min(first + side - 1, end)) for first in range(0, end + 1, side)] for end in map(int, last)]
        held = {(row // side, column // side) for row, column in family.anchors.tolist()}
        tiles = torch.tensor(
            [
                (*rows, *columns)
                for r, rows in enumerate(along[0])
                for c, columns in enumerate(along[1])
                if (r, c) in held
            ]
        )
        choices = comb(len(tiles) + threat.count - 1, threat.count)
        if choices > _MOST:
            raise InvalidInput(
                f"patch is {threat}, with {choices} choices of regions to bound on {size[0]}x{size[1]} images, more "
                f"than {_MOST}; take fewer patches"
            )
        groups = torch.combinations(torch.arange(len(tiles)), threat.count, with_replacement=True)
        corners = tiles[groups.view(len(groups), threat.count)]
        middle = last.repeat_interleave(2) / 2
        corners = corners[(corners - middle).square().sum(dim=(1, 2)).argsort(descending=True, stable=True)].to(device)
        image = torch.arange(images, device=device).repeat(len(corners))
        return cls(family, image, corners.repeat_interleave(images, dim=0))

    def __len__(self) -> int:
        return len(self.image)

    @property
    def single(self) -> Bool[Tensor, " M"]:
        """Tells whether there is but one choice of placements left."""
        return (self.corners[..., ::2] == self.corners[..., 1::2]).all(dim=2).all(dim=1)

    def footprint(self) -> Bool[Tensor, "M H W"]:
        """The pixels that the patches cover at any of their placements."""
        top, bottom, left, right = self.corners[..., None].unbind(dim=2)
        if self.family.rectangle is not None:
            row, column = (torch.arange(length, device=self.image.device) for length in self.family.size)
            in_rows = (row >= top) & (row < bottom + self.family.rectangle[0])
            in_columns = (column >= left) & (column < right + self.family.rectangle[1])
            return (in_rows[..., :, None] & in_columns[..., None, :]).any(dim=1)
        row, column = self.family.anchors.to(self.image.device).unbind(dim=1)
        member = (row >= top) & (row <= bottom) & (column >= left) & (column <= right)
        return self.family.covered(member.flatten(0, 1)).view(*member.shape[:2], *self.family.size).any(dim=1)

    def split(self, last: int) -> tuple[Regions, Regions]:
        """All but the last so many, and those."""
        cut = max(0, len(self) - last)
        everything = torch.arange(len(self), device=self.image.device)
        return self.keep(everything[:cut]), self.keep(everything[cut:])

    def keep(self, rows: Tensor) -> Regions:
        return replace(self, image=self.image[rows], corners=self.corners[rows])

    def join(self, others: Regions) -> Regions:
        """Both, the `others` at the end."""
        return replace(
            self, image=torch.cat([self.image, others.image]), corners=torch.cat([self.corners, others.corners])
        )

    def halves(self) -> Regions:
        """The same placements in smaller regions: each range of more than one corner in two."""
        parts = self
        for patch in range(self.corners.shape[1]):
            for axis in (0, 2):
                first, last = parts.corners[:, patch, axis], parts.corners[:, patch, axis + 1]
                wide, middle = first < last, (first + last) // 2
                lower, upper = parts.corners.clone(), parts.corners[wide].clone()
                lower[:, patch, axis + 1] = middle
                upper[:, patch, axis] = middle[wide] + 1
                halves = replace(parts, corners=lower)
                parts = halves.join(replace(parts, image=parts.image[wide], corners=upper))
        return parts
