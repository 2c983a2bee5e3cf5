"""Which pixels each ablation keeps: the kinds of derandomized smoothing (Levine & Feizi 2020, Sections 3 and 4)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from robustpatch.errors import InvalidInput
from robustpatch.geometry import Ablation, Grid, Windows, check_window, window_axis
from robustpatch.touched import Axis

__all__ = ["Ablation", "Blocks", "Columns", "GridBlocks", "GridColumns", "Rows", "parse_ablation"]

_GRAMMAR = re.compile(r"(columns|rows|blocks):(\d{1,9})(?:x(\d{1,9}))?(?:/(\d{1,9}))?")
_GRID_GRAMMAR = re.compile(r"(?:(\d{1,9})\s*\*\s*)?grid-(columns|blocks):(\d{1,9})")


@dataclass(frozen=True)
class Columns(Windows):
    """Band n keeps the `size` columns from n·`stride` on, wrapping around; N = ceil(W / stride).

    With stride 1 a patch of width m touches min(W, m + size - 1) bands.
    """

    size: int
    stride: int = 1

    def __post_init__(self) -> None:
        check_window("columns", "size", self.size, self.stride)

    def axes(self, height: int, width: int) -> tuple[Axis, Axis]:
        return Axis(height, height, height), window_axis("columns", "size", self.size, self.stride, width)

    def __str__(self) -> str:
        return f"columns:{self.size}" + (f"/{self.stride}" if self.stride > 1 else "")


@dataclass(frozen=True)
class Rows(Windows):
    """Band n keeps the `size` rows from n·`stride` on, wrapping around; N = ceil(H / stride).

    With stride 1 a patch of height m touches min(H, m + size - 1) bands.
    """

    size: int
    stride: int = 1

    def __post_init__(self) -> None:
        check_window("rows", "size", self.size, self.stride)

    def axes(self, height: int, width: int) -> tuple[Axis, Axis]:
        return window_axis("rows", "size", self.size, self.stride, height), Axis(width, width, width)

    def __str__(self) -> str:
        return f"rows:{self.size}" + (f"/{self.stride}" if self.stride > 1 else "")


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
        check_window("blocks", "height", self.height, self.stride)
        check_window("blocks", "width", self.width, self.stride)

    def axes(self, height: int, width: int) -> tuple[Axis, Axis]:
        return (
            window_axis("blocks", "height", self.height, self.stride, height),
            window_axis("blocks", "width", self.width, self.stride, width),
        )

    def __str__(self) -> str:
        size = str(self.height) if self.height == self.width else f"{self.height}x{self.width}"
        return f"blocks:{size}" + (f"/{self.stride}" if self.stride > 1 else "")


@dataclass(frozen=True)
class GridColumns(Grid):
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
class GridBlocks(Grid):
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
