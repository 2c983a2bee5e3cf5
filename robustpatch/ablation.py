"""Which pixels each ablation keeps: the geometry of derandomized smoothing (Levine & Feizi 2020, Sections 3 and 4)."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, combinations
from math import comb

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from robustpatch.errors import InvalidInput
from robustpatch.threat import PatchThreat
from robustpatch.touched import Axis, DenseTouched, Touched, WindowsTouched

_GRAMMAR = re.compile(r"(columns|rows|blocks):(\d+)(?:x(\d+))?(?:/(\d+))?")
_GRID_GRAMMAR = re.compile(r"(?:(\d+)\s*\*\s*)?grid-(columns|blocks):(\d+)")
_MOST_CHOICES = 2**20  # ablations of a grid: more of them nobody would score for one image


class Ablation(ABC):
    """A fixed, finite list of N pixel sets; ablation n keeps the n-th set and hides everything else.

    Subclasses are frozen dataclasses: hashable, comparable, and free of any network. Only `count` and `masks` have to
    be written for a new kind; `touched` and `affected` then follow from the masks.
    """

    @abstractmethod
    def count(self, height: int, width: int) -> int:
        """N, the number of ablations of an image of `height` × `width`. Raises `InvalidInput` where there are none."""

    @abstractmethod
    def masks(self, height: int, width: int, index: Int[Tensor, "..."] | None = None) -> Bool[Tensor, "... H W"]:
        """True at the kept pixels: of all N ablations, or of those in `index`, on the device of `index`."""

    def touched(self, threat: PatchThreat, height: int, width: int) -> Touched:
        """The sets of ablations that one rectangle of `threat` shares a pixel with, read off the masks."""
        threat.check_fits(height, width)
        size, rows = (threat.height, threat.width), []
        for index in torch.arange(self.count(height, width)).split(max(1, 2**24 // (height * width))):
            kept = self.masks(height, width, index).to(torch.float32)[:, None]
            rows.append(torch.nn.functional.max_pool2d(kept, size, stride=1).flatten(1) > 0)
        return DenseTouched(torch.cat(rows).T)

    def affected(self, threat: PatchThreat, height: int, width: int) -> int:
        """Δ: the most ablations that one placement of `threat` touches; min(N, count · Δ) for several patches."""
        most = int(self.touched(threat, height, width).sizes.max())
        return min(self.count(height, width), threat.count * most)


class _Windows(Ablation):
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

    def touched(self, threat: PatchThreat, height: int, width: int) -> WindowsTouched:
        threat.check_fits(height, width)
        return WindowsTouched(*self.axes(height, width), threat.height, threat.width)


def _check(kind: str, name: str, size: int, stride: int) -> None:
    for what, value in ((name, size), ("stride", stride)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidInput(f"{kind} {what} is {value!r}; it must be a whole number of at least 1")


def _axis(kind: str, name: str, size: int, stride: int, length: int) -> Axis:
    if size > length or stride > length:
        what, value = (name, size) if size > length else ("stride", stride)
        raise InvalidInput(f"{kind} {what} is {value}, more than the image's {length} pixels; take at most {length}")
    return Axis(length, size, stride)


@dataclass(frozen=True)
class Columns(_Windows):
    """Band n keeps the `size` columns from n·`stride` on, wrapping around; N = ceil(W / stride).

    With stride 1 a patch of width m touches min(W, m + size - 1) bands.
    """

    size: int
    stride: int = 1

    def __post_init__(self) -> None:
        _check("columns", "size", self.size, self.stride)

    def axes(self, height: int, width: int) -> tuple[Axis, Axis]:
        return Axis(height, height, height), _axis("columns", "size", self.size, self.stride, width)

    def __str__(self) -> str:
        return f"columns:{self.size}" + (f"/{self.stride}" if self.stride > 1 else "")


@dataclass(frozen=True)
class Rows(_Windows):
    """Band n keeps the `size` rows from n·`stride` on, wrapping around; N = ceil(H / stride).

    With stride 1 a patch of height m touches min(H, m + size - 1) bands.
    """

    size: int
    stride: int = 1

    def __post_init__(self) -> None:
        _check("rows", "size", self.size, self.stride)

    def axes(self, height: int, width: int) -> tuple[Axis, Axis]:
        return _axis("rows", "size", self.size, self.stride, height), Axis(width, width, width)

    def __str__(self) -> str:
        return f"rows:{self.size}" + (f"/{self.stride}" if self.stride > 1 else "")


@dataclass(frozen=True)
class Blocks(_Windows):
    """Block (i, j), number i·ceil(W/stride) + j, keeps `height` × `width` pixels from (i, j)·`stride` on, wrapping.

    `Blocks(8)` is the square of side 8 at every pixel: N = H·W, and an m×m patch touches (m + 7)² of them.
    """

    height: int
    width: int = 0
    stride: int = 1

    def __post_init__(self) -> None:
        if self.width == 0:
            object.__setattr__(self, "width", self.height)
        _check("blocks", "height", self.height, self.stride)
        _check("blocks", "width", self.width, self.stride)

    def axes(self, height: int, width: int) -> tuple[Axis, Axis]:
        return (
            _axis("blocks", "height", self.height, self.stride, height),
            _axis("blocks", "width", self.width, self.stride, width),
        )

    def __str__(self) -> str:
        size = str(self.height) if self.height == self.width else f"{self.height}x{self.width}"
        return f"blocks:{size}" + (f"/{self.stride}" if self.stride > 1 else "")


class _Grid(Ablation):
    """Every choice of `keep` cells of a grid that starts at the top left corner; N = C(cells, keep), lexicographic.

    Where the size of a cell does not divide the image, the last cell of an axis is smaller; nothing wraps. An ablation
    is touched iff one of its cells is.
    """

    size: int
    keep: int
    kind: str

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

    def touched(self, threat: PatchThreat, height: int, width: int) -> Touched:
        threat.check_fits(height, width)
        cells, size = self.cells(height, width).to(torch.float32)[:, None], (threat.height, threat.width)
        hit = torch.nn.functional.max_pool2d(cells, size, stride=1).flatten(1).T > 0
        # Placements that touch the same cells touch the same choices: few sets are left to be listed.
        sets, of_placement = torch.unique(hit, dim=0, return_inverse=True)
        return DenseTouched(sets[:, self.choices(height, width)].any(dim=-1), of_placement)

    def affected_closed_form(self, threat: PatchThreat, height: int, width: int) -> int:
        """The paper's Δ, of one patch C(N, k) - C(N - a, k): N cells, of which it touches a, along an axis at most
        ceil((m-1)/s) + 1 and never more than there are. Of several, so much of each, and no more than there are.

        Equal to `affected` where the size divides the image, and never below it elsewhere: the certificates count
        what is touched and do not need it. Raises `InvalidInput`. (Levine & Feizi 2020, Section 3.)
        """
        threat.check_fits(height, width)
        cell, grid, patch = self.cell(height, width), self.grid(height, width), (threat.height, threat.width)
        rows, columns = (min(n, -(-(m - 1) // s) + 1) for m, s, n in zip(patch, cell, grid, strict=True))
        choices = self.count(height, width)
        most = choices - comb(grid[0] * grid[1] - rows * columns, self.keep)
        return min(choices, threat.count * most)

    def __str__(self) -> str:
        return f"{self.keep}*{self.kind}:{self.size}"

    def _check(self) -> None:
        for what, value in (("size", self.size), ("keep", self.keep)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidInput(f"{self.kind} {what} is {value!r}; it must be a whole number of at least 1")

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


@dataclass(frozen=True)
class GridColumns(_Grid):
    """Every choice of `keep` of the ceil(W / size) bands of columns that start at multiples of `size`.

    N = C(ceil(W / size), keep). The last band is narrower where `size` does not divide the width.
    """

    size: int
    keep: int = 1
    kind = "grid-columns"

    def __post_init__(self) -> None:
        self._check()

    def cell(self, height: int, width: int) -> tuple[int, int]:
        self._check_fits(width)
        return height, self.size


@dataclass(frozen=True)
class GridBlocks(_Grid):
    """Every choice of `keep` of the ceil(H / size)·ceil(W / size) blocks of a grid of `size` × `size` pixels.

    The blocks are numbered in row-major order; the last ones are smaller where `size` does not divide the image.
    """

    size: int
    keep: int = 1
    kind = "grid-blocks"

    def __post_init__(self) -> None:
        self._check()

    def cell(self, height: int, width: int) -> tuple[int, int]:
        self._check_fits(min(height, width))
        return self.size, self.size


def parse_ablation(text: str) -> Ablation:
    """Read "columns:2", "rows:3", "blocks:8", "blocks:4x6", with a stride "columns:19/10", of a grid
    "2*grid-columns:1", "2*grid-blocks:4", or several as one: "columns:2+rows:2". Raises `InvalidInput`.
    `str(ablation)` is the inverse.
    """
    text = text.strip().lower()
    if "+" in text:
        from robustpatch.union import Union

        return Union(tuple(parse_ablation(part) for part in text.split("+")))
    if (match := _GRID_GRAMMAR.fullmatch(text)) is not None:
        kind = GridColumns if match[2] == "columns" else GridBlocks
        return kind(int(match[3]), int(match[1] or 1))
    match = _GRAMMAR.fullmatch(text)
    # Blocks(4, 0) is the square in Python, but nobody writes 4x0 and means it.
    if match is None or (match[3] is not None and (match[1] != "blocks" or int(match[3]) == 0)):
        raise InvalidInput(
            f'ablation is {text!r}; use "columns:2", "rows:3" or "blocks:8" (size in pixels), '
            'with a stride after a slash: "columns:19/10", cells of a grid: "2*grid-columns:1", "2*grid-blocks:4", or '
            'several together: "columns:2+rows:2"'
        )
    kind, size, other, stride = match[1], int(match[2]), match[3], int(match[4] or 1)
    if kind == "blocks":
        return Blocks(size, int(other) if other is not None else size, stride)
    return Columns(size, stride) if kind == "columns" else Rows(size, stride)
