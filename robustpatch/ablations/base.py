"""The interface of ablations, and the two geometries of ours: windows that wrap around the border, cells of a grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, combinations
from math import comb
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from robustpatch.ablations.shapes import ShiftedTouched, SomeTouched, TogetherTouched
from robustpatch.ablations.touched import Axis, DenseTouched, Touched, WindowsTouched
from robustpatch.errors import InvalidInput, check_whole
from robustpatch.threats.base import Patches, Placements
from robustpatch.threats.stamp import Translations
from robustpatch.threats.within import Allowed

_LISTED = 256  # windows up to which a list of the sets that a shape touches is as quick as running sums
_MOST_CHOICES = 2**20  # ablations of a grid: more of them nobody would score for one image


class Ablation(ABC):
    """A fixed, finite list of N pixel sets; ablation n keeps the n-th set and hides everything else.

    Subclasses are frozen dataclasses: hashable, comparable, and free of any network. Only `count` and `masks` have to
    be written for a new kind; `touched_by` and `affected` then follow from the masks.
    """

    @abstractmethod
    def count(self, height: int, width: int) -> int:
        """N, the number of ablations of an image of `height` × `width`. Raises `InvalidInput` where there are none."""

    @abstractmethod
    def masks(self, height: int, width: int, index: Int[Tensor, "..."] | None = None) -> Bool[Tensor, "... H W"]:
        """True at the kept pixels: of all N ablations, or of those in `index`, on the device of `index`."""

    def touched(self, threat: Patches, height: int, width: int) -> Touched:
        """The sets of ablations that one patch of `threat` shares a pixel with, at each of its placements.

        Of patches of different shapes, what all of them can touch (`TogetherTouched`).
        """
        families = Counter(threat.families(height, width))
        parts = [(self.touched_at(family), count) for family, count in families.items()]
        return parts[0][0] if len(parts) == 1 else TogetherTouched(parts)

    def touched_at(self, placements: Placements) -> Touched:
        """As `touched_by`; of places that are some of a shape's, by those of all its places."""
        if isinstance(placements, Allowed):
            return SomeTouched(self.touched_at(placements.base), placements.kept)
        return self.touched_by(placements)

    def touched_by(self, placements: Placements) -> Touched:
        """The sets of ablations that a patch shares a pixel with, read off the masks.

        A closed form may replace this where `placements.rectangle` says that the patch is a rectangle.
        """
        height, width = placements.size
        parts = torch.arange(self.count(height, width)).split(max(1, 2**24 // (height * width)))
        return DenseTouched(torch.cat([placements.hits(self.masks(height, width, part)) for part in parts], dim=1))

    def affected(self, threat: Patches, height: int, width: int) -> int:
        """Δ: the most ablations that one placement of `threat` touches; min(N, count · Δ) for several patches."""
        return self.touched(threat, height, width).most(threat.count)


class Windows(Ablation):
    """Ablations that are a window of rows times a window of columns, both wrapping around the border."""

    @abstractmethod
    def axes(self, height: int, width: int) -> tuple[Axis, Axis]:
        """The windows along the rows and along the columns; ablation n is (n // columns, n % columns)."""

    def count(self, height: int, width: int) -> int:
        rows, columns = self.axes(height, width)
        return rows.count * columns.count

    def masks(self, height: int, width: int, index: Int[Tensor, "..."] | None = None) -> Bool[Tensor, "... H W"]:
        rows, columns = self.axes(height, width)
        if index is None:
            index = torch.arange(rows.count * columns.count)
        row = rows.masks(torch.div(index, columns.count, rounding_mode="floor"))
        return row[..., :, None] & columns.masks(index % columns.count)[..., None, :]

    def touched_by(self, placements: Placements) -> Touched:
        rows, columns = self.axes(*placements.size)
        if placements.rectangle is not None:
            return WindowsTouched(rows, columns, *placements.rectangle)
        if isinstance(placements, Translations):
            pattern = placements.pattern
            for other, dim in ((rows, 0), (columns, 1)):
                if other.size == other.length and bool(pattern.any(dim=dim).all()):
                    # A band sees which columns (or rows) a shape covers, not how much of each: those of its box.
                    return WindowsTouched(rows, columns, *placements.extent)
            if ShiftedTouched.applies(rows, columns) and rows.count * columns.count > _LISTED:
                return ShiftedTouched(rows, columns, pattern)
        return super().touched_by(placements)


def window_axis(kind: str, name: str, size: int, stride: int, length: int) -> Axis:
    """The windows of that size and stride along an axis of `length` pixels. Raises `InvalidInput` for larger ones."""
    if size > length or stride > length:
        what, value = (name, size) if size > length else ("stride", stride)
        raise InvalidInput(f"{kind} {what} is {value}, more than the image's {length} pixels; take at most {length}")
    return Axis(length, size, stride)


@dataclass(frozen=True)
class Grid(Ablation):
    """Every choice of `keep` cells of a grid that starts at the top left corner; N = C(cells, keep), lexicographic.

    Where the size of a cell does not divide the image, the last cell of an axis is smaller; nothing wraps. An ablation
    is touched iff one of its cells is.
    """

    size: int
    keep: int = 1
    kind: ClassVar[str]

    def __post_init__(self) -> None:
        for name in ("size", "keep"):
            check_whole(f"{self.kind} {name}", getattr(self, name))

    @property
    @abstractmethod
    def single_cells(self) -> Windows:
        """The cells one by one, as windows of an image that the size divides."""

    @abstractmethod
    def cell(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a cell. Raises `InvalidInput` where it is larger than the image."""

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of cells."""
        cell = self.cell(height, width)
        return -(-height // cell[0]), -(-width // cell[1])

    def count(self, height: int, width: int) -> int:
        rows, columns = self.grid(height, width)
        found = comb(rows * columns, self.keep)
        if found < 1:
            raise InvalidInput(
                f"{self.kind} keep is {self.keep}, more than the {rows * columns} cells of size {self.size} in "
                f"{height}x{width} pixels; keep fewer"
            )
        if found > _MOST_CHOICES:
            raise InvalidInput(
                f"{self.kind} keep is {self.keep}, which makes {found} ablations of {rows * columns} cells, more than "
                f"the {_MOST_CHOICES} allowed; keep fewer cells, or make them larger"
            )
        return found

    def cells(self, height: int, width: int) -> Bool[Tensor, "cells H W"]:
        """True at the pixels of each cell, row-major."""
        (tall, wide), (rows, columns) = self.cell(height, width), self.grid(height, width)
        of_pixel = (torch.arange(height) // tall)[:, None] * columns + torch.arange(width) // wide
        return of_pixel == torch.arange(rows * columns)[:, None, None]

    def choices(self, height: int, width: int) -> Int[Tensor, "N keep"]:
        """The cells that each ablation keeps, ascending."""
        self.count(height, width)
        rows, columns = self.grid(height, width)
        return _choices(rows * columns, self.keep).clone()

    def masks(self, height: int, width: int, index: Int[Tensor, "..."] | None = None) -> Bool[Tensor, "... H W"]:
        choices, cells = self.choices(height, width), self.cells(height, width)
        chosen = choices if index is None else choices.to(index.device)[index]
        return cells.to(chosen.device)[chosen].any(dim=-3)

    def touched_by(self, placements: Placements) -> Touched:
        # Placements that touch the same cells touch the same choices: few sets are left to be listed.
        hit = placements.hits(self.cells(*placements.size))
        sets, of_placement = torch.unique(hit, dim=0, return_inverse=True)
        return DenseTouched(sets[:, self.choices(*placements.size)].any(dim=-1), of_placement)

    def __str__(self) -> str:
        return f"{self.keep}*{self.kind}:{self.size}"

    def _check_fits(self, length: int) -> None:
        if self.size > length:
            raise InvalidInput(
                f"{self.kind} size is {self.size}, more than the image's {length} pixels; take at most {length}"
            )


@lru_cache(maxsize=8)
def _choices(cells: int, keep: int) -> Int[Tensor, "N keep"]:
    # torch.combinations lists all cells^keep tuples before it drops the rest.
    flat = chain.from_iterable(combinations(range(cells), keep))
    return torch.from_numpy(np.fromiter(flat, np.int64, comb(cells, keep) * keep)).reshape(-1, keep)
