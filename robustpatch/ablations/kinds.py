"""The kinds of ablations of derandomized smoothing (Levine & Feizi 2020, Sections 3 and 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from robustpatch.ablations.base import Grid, Windows, window_axis
from robustpatch.ablations.touched import Axis
from robustpatch.errors import check_whole


@dataclass(frozen=True)
class Band(Windows):
    """Windows as long as the image along one of its axes; they lie side by side across the other."""

    size: int
    stride: int = 1
    kind: ClassVar[str]
    across: ClassVar[int]
    """The axis that tells the bands apart: 0, the rows, or 1, the columns."""

    def __post_init__(self) -> None:
        for name in ("size", "stride"):
            check_whole(f"{self.kind} {name}", getattr(self, name))

    def axes(self, height: int, width: int) -> tuple[Axis, Axis]:
        if self.across == 1:
            return Axis(height, height, height), window_axis(self.kind, "size", self.size, self.stride, width)
        return window_axis(self.kind, "size", self.size, self.stride, height), Axis(width, width, width)

    def __str__(self) -> str:
        return f"{self.kind}:{self.size}" + (f"/{self.stride}" if self.stride > 1 else "")


class Columns(Band):
    """Band n keeps the `size` columns from n·`stride` on, wrapping around; N = ceil(W / stride).

    With stride 1 a patch of width m touches min(W, m + size - 1) bands.
    """

    kind: ClassVar[str] = "columns"
    across: ClassVar[int] = 1


class Rows(Band):
    """Band n keeps the `size` rows from n·`stride` on, wrapping around; N = ceil(H / stride).

    With stride 1 a patch of height m touches min(H, m + size - 1) bands.
    """

    kind: ClassVar[str] = "rows"
    across: ClassVar[int] = 0


@dataclass(frozen=True)
class Blocks(Windows):
    """Block (i, j), number i·ceil(W/stride) + j, keeps `height` × `width` pixels from (i, j)·`stride` on, wrapping.

    `Blocks(8)` is the square of side 8 at every pixel: N = H·W, and an m×m patch touches (m + 7)² of them.
    """

    height: int
    width: int = 0
    stride: int = 1

    def __post_init__(self) -> None:
        if self.width == 0:
            object.__setattr__(self, "width", self.height)
        for name in ("height", "width", "stride"):
            check_whole(f"blocks {name}", getattr(self, name))

    def axes(self, height: int, width: int) -> tuple[Axis, Axis]:
        return (
            window_axis("blocks", "height", self.height, self.stride, height),
            window_axis("blocks", "width", self.width, self.stride, width),
        )

    def __str__(self) -> str:
        size = str(self.height) if self.height == self.width else f"{self.height}x{self.width}"
        return f"blocks:{size}" + (f"/{self.stride}" if self.stride > 1 else "")


class GridColumns(Grid):
    """Every choice of `keep` of the ceil(W / size) bands of columns that start at multiples of `size`.

    N = C(ceil(W / size), keep). The last band is narrower where `size` does not divide the width.
    """

    kind = "grid-columns"

    @property
    def single_cells(self) -> Columns:
        return Columns(self.size, stride=self.size)

    def cell(self, height: int, width: int) -> tuple[int, int]:
        self._check_fits(width)
        return height, self.size


class GridBlocks(Grid):
    """Every choice of `keep` of the ceil(H / size)·ceil(W / size) blocks of a grid of `size` × `size` pixels.

    The blocks are numbered in row-major order; the last ones are smaller where `size` does not divide the image.
    """

    kind = "grid-blocks"

    @property
    def single_cells(self) -> Blocks:
        return Blocks(self.size, stride=self.size)

    def cell(self, height: int, width: int) -> tuple[int, int]:
        self._check_fits(min(height, width))
        return self.size, self.size
