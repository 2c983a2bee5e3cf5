"""Rectangles of one size, anywhere inside the image; or squares of a share of its area."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from robustpatch.errors import InvalidInput, check_whole
from robustpatch.threats.base import Patches, Placements

_SIZE = re.compile(r"(\d{1,9})(?:x(\d{1,9}))?")
_SHARE = re.compile(r"(\d{1,9}(?:\.\d{1,30})?)%")


@dataclass(frozen=True)
class Rectangles(Placements):
    """All places of a rectangle of `height` × `width` on images of `size`: L = (H-h+1)·(W-w+1), row-major."""

    height: int
    width: int
    size: tuple[int, int]

    @property
    def anchors(self) -> Int[Tensor, "L 2"]:
        rows = torch.arange(self.size[0] - self.height + 1)
        columns = torch.arange(self.size[1] - self.width + 1)
        return torch.cartesian_prod(rows, columns).reshape(-1, 2)

    @property
    def rectangle(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def extent(self) -> tuple[int, int]:
        return self.height, self.width

    def __len__(self) -> int:
        return (self.size[0] - self.height + 1) * (self.size[1] - self.width + 1)

    def footprint(self, index: Int[Tensor, " n"]) -> Bool[Tensor, "n H W"]:
        columns = self.size[1] - self.width + 1
        corners = torch.stack([torch.div(index, columns, rounding_mode="floor"), index % columns], dim=1)
        return _covered(corners[:, None], self.height, self.width, self.size)

    def sets(self) -> tuple[list[Bool[Tensor, "h w"]], Int[Tensor, "L 3"]]:
        return [torch.ones(self.height, self.width, dtype=torch.bool)], F.pad(self.anchors, (1, 0))

    def find(self, anchors: Int[Tensor, "n 2"]) -> Int[Tensor, " n"]:
        row, column = anchors.unbind(dim=1)
        rows, columns = self.size[0] - self.height + 1, self.size[1] - self.width + 1
        known = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        return torch.where(known, row * columns + column, -1)

    def hits(self, masks: Bool[Tensor, "n H W"]) -> Bool[Tensor, "L n"]:
        marked = masks.to(torch.float32)[:, None]
        return (F.max_pool2d(marked, (self.height, self.width), stride=1).flatten(1) > 0).T

    def means(self, values: Float[Tensor, "B H W"]) -> Float[Tensor, "B L"]:
        return F.avg_pool2d(values, (self.height, self.width), 1).flatten(1)


@dataclass(frozen=True)
class PatchThreat(Patches):
    """The attacker overwrites all channels of up to `count` axis-aligned rectangles of `height` × `width` pixels.

    Each rectangle lies wholly inside the image (a patch does not wrap around the border, though ablations do); the
    rectangles may overlap, and their content is any value in [0, 1]. A smaller rectangle is contained in the threat.

    Raises `InvalidInput` for sizes or counts below one.
    """

    shape: ClassVar[str] = "rectangle"

    height: int
    width: int
    count: int = 1

    def __post_init__(self) -> None:
        for name in ("height", "width", "count"):
            check_whole(f"patch {name}", getattr(self, name))

    @classmethod
    def read(cls, text: str) -> PatchThreat | None:
        """Read "5x5", "5" and "2x10" (height × width)."""
        match = _SIZE.fullmatch(text)
        return None if match is None else cls(int(match[1]), int(match[2] or match[1]))

    def on(self, height: int, width: int) -> PatchThreat:
        if self.height > height or self.width > width:
            raise InvalidInput(
                f"patch {self} (height x width) is larger than the image, {height}x{width}; "
                f"take at most {height}x{width}"
            )
        if self.count > height * width:
            raise InvalidInput(
                f"patch count is {self.count}, more than the {height * width} pixels of the image; take fewer patches"
            )
        return self

    def families(self, height: int, width: int) -> tuple[Rectangles, ...]:
        self.check_fits(height, width)
        return (Rectangles(self.height, self.width, (height, width)),) * self.count

    def footprint(self, at: Int[Tensor, "P count 2"], height: int, width: int) -> Bool[Tensor, "P H W"]:
        """The pixels that rectangles with these corners `(row, column)` cover, one mask for each of P choices."""
        return _covered(at, self.height, self.width, (height, width))

    def __str__(self) -> str:
        size = f"{self.height}x{self.width}"
        return size if self.count == 1 else f"{self.count}*{size}"


@dataclass(frozen=True)
class AreaShare(Patches):
    """Up to `count` squares, the smallest that cover at least `percent` of the image; "2%", "2*0.5%".

    On 224×224, 1%, 2% and 3% are the squares of side 23, 32 and 39. `percent` is a decimal number as text, so that the
    share is exact. Raises `InvalidInput` for what is no share.
    """

    shape: ClassVar[str] = "share"

    percent: str
    count: int = 1

    def __post_init__(self) -> None:
        check_whole("patch count", self.count)
        if not isinstance(self.percent, str) or _SHARE.fullmatch(f"{self.percent}%") is None:
            raise InvalidInput(
                f"patch percent is {self.percent!r}; give a decimal number as text, such as '2' or '0.5'"
            )
        if Fraction(self.percent) == 0:
            raise InvalidInput(f"patch {self} covers nothing; take more than 0%")

    @classmethod
    def read(cls, text: str) -> AreaShare | None:
        """Read "2%" and "0.5%"."""
        match = _SHARE.fullmatch(text)
        return None if match is None else cls(match[1])

    @property
    def height(self) -> int:  # type: ignore[override]  no pixels are known yet
        raise InvalidInput(
            f"patch {self} has no size in pixels before it is on an image; take threat.on(height, width)"
        )

    width = height  # type: ignore[assignment]

    def on(self, height: int, width: int) -> PatchThreat:
        area = Fraction(self.percent) / 100 * height * width
        side = isqrt(-(-area.numerator // area.denominator) - 1) + 1  # the least whose square is no smaller
        return PatchThreat(side, side, self.count).on(height, width)

    def families(self, height: int, width: int) -> tuple[Rectangles, ...]:
        return self.on(height, width).families(height, width)

    def __str__(self) -> str:
        return f"{self.percent}%" if self.count == 1 else f"{self.count}*{self.percent}%"


def _covered(
    corners: Int[Tensor, "P count 2"], height: int, width: int, size: tuple[int, int]
) -> Bool[Tensor, "P H W"]:
    row, column = (torch.arange(length, device=corners.device) for length in size)
    top, left = corners[..., 0, None], corners[..., 1, None]
    in_rows = (row >= top) & (row < top + height)
    in_columns = (column >= left) & (column < left + width)
    return (in_rows[..., :, None] & in_columns[..., None, :]).any(dim=1)
