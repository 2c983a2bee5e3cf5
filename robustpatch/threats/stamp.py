"""Shapes that are one set of pixels, moved over the image: discs, crosses, polygons, pictures."""

from __future__ import annotations

import re
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import cos, hypot, radians, sin
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from robustpatch.errors import InvalidInput, check_whole
from robustpatch.threats.base import Patches, Placements
from robustpatch.threats.bitmap import as_tensor, black_and_white, check_name, is_packed, pack, unpack
from robustpatch.threats.rectangle import PatchThreat, Rectangles

LONGEST = 4096  # pixels along a side of a shape
_FARTHEST = 512  # rows and columns of a polygon: what its edges cross takes a look at each pixel for each edge


class Translations(Placements):
    """All places of a set of pixels inside images of `size`: L = (H-h+1)·(W-w+1), row-major, h × w its bounding box.

    The anchor is the top-left corner of the bounding box, `pattern` [h,w] the pixels in it.
    """

    def __init__(self, pattern: Bool[Tensor, "h w"], size: tuple[int, int]) -> None:
        self.pattern, self.size = pattern, size
        self._box = Rectangles(pattern.shape[0], pattern.shape[1], size)

    @property
    def anchors(self) -> Int[Tensor, "L 2"]:
        return self._box.anchors

    @property
    def extent(self) -> tuple[int, int]:
        return self._box.height, self._box.width

    @cached_property
    def pixels(self) -> int:  # type: ignore[override]  a property, computed once
        return int(self.pattern.sum())

    def __len__(self) -> int:
        return len(self._box)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Translations):
            return NotImplemented
        return self.size == other.size and torch.equal(self.pattern, other.pattern)

    def __hash__(self) -> int:
        return hash((self.size, tuple(self.pattern.shape), self.pixels))

    def find(self, anchors: Int[Tensor, "n 2"]) -> Int[Tensor, " n"]:
        return self._box.find(anchors)

    def footprint(self, index: Int[Tensor, " n"]) -> Bool[Tensor, "n H W"]:
        (height, width), (h, w) = self.size, self.extent
        columns = width - w + 1
        row = torch.arange(height, device=index.device) - torch.div(index, columns, rounding_mode="floor")[:, None]
        column = torch.arange(width, device=index.device) - (index % columns)[:, None]
        pattern = F.pad(self.pattern.to(index.device), (0, 1, 0, 1))  # the last row and column: outside
        row, column = (torch.where((at < 0) | (at >= m), m, at) for at, m in ((row, h), (column, w)))
        return pattern[row[:, :, None], column[:, None, :]]

    def sets(self) -> tuple[list[Bool[Tensor, "h w"]], Int[Tensor, "L 3"]]:
        return [self.pattern], F.pad(self.anchors, (1, 0))

    def hits(self, masks: Bool[Tensor, "n H W"]) -> Bool[Tensor, "L n"]:
        return (self._sums(masks.to(torch.float32)) > 0.5).T  # whole numbers, and nothing is taken away from them

    def covered(self, member: Bool[Tensor, "M L"]) -> Bool[Tensor, "M H W"]:
        (height, width), (h, w) = self.size, self.extent
        marked = member.to(torch.float32).view(-1, 1, height - h + 1, width - w + 1)
        return F.conv_transpose2d(marked, self.pattern.to(marked)[None, None])[:, 0] > 0.5

    def means(self, values: Float[Tensor, "B H W"]) -> Float[Tensor, "B L"]:
        return self._sums(values) / self.pixels

    def _sums(self, values: Float[Tensor, "n H W"]) -> Float[Tensor, "n L"]:
        """Σ of the values under the pattern at each place."""
        kernel = self.pattern.to(values)[None, None]
        return torch.cat([F.conv2d(some[:, None], kernel).flatten(1) for some in values.split(4096)])


class Stamp(Patches):
    """The attacker overwrites the pixels under up to `count` copies of a shape, each wholly inside the image.

    A patch that changes only some of the shape's pixels is contained in the threat. Subclasses say `pattern` and their
    text; the shape is not turned (`rotated` makes turned ones).
    """

    @property
    @abstractmethod
    def pattern(self) -> Bool[Tensor, "h w"]:
        """The shape's pixels in its bounding box: each border row and column holds one."""

    @property
    def height(self) -> int:  # type: ignore[override]
        return self.pattern.shape[0]

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.pattern.shape[1]

    def on(self, height: int, width: int) -> Stamp:
        if self.height > height or self.width > width:
            raise InvalidInput(
                f"patch {self} is {self.height}x{self.width} pixels, larger than the image, {height}x{width}; take a "
                "smaller one"
            )
        if self.count > height * width:
            raise InvalidInput(
                f"patch count is {self.count}, more than the {height * width} pixels of the image; take fewer patches"
            )
        return self

    def families(self, height: int, width: int) -> tuple[Placements, ...]:
        self.check_fits(height, width)
        one = Translations(self.pattern, (height, width))
        return (one,) * self.count

    def __str__(self) -> str:
        return self.text if self.count == 1 else f"{self.count}*{self.text}"

    @property
    @abstractmethod
    def text(self) -> str:
        """The text of one such patch."""


@dataclass(frozen=True)
class Disc(Stamp):
    """Discs of `diameter` pixels: the pixels of a square of that side whose centres lie in the disc that it holds.

    (2r - (d-1))² + (2c - (d-1))² ≤ d² for row r and column c of the square: 1, 4, 9, 12, 21, 32 and 37 pixels for
    diameters d of 1 to 7. Text: "disc:7". Raises `InvalidInput` for a diameter or count below one.
    """

    shape: ClassVar[str] = "disc"

    diameter: int
    count: int = 1

    def __post_init__(self) -> None:
        _check_side("diameter", self.diameter)
        check_whole("patch count", self.count)

    @classmethod
    def read(cls, text: str) -> Disc | None:
        """Read "disc:7"."""
        match = re.fullmatch(r"disc:(\d{1,9})", text, re.IGNORECASE)
        return None if match is None else cls(int(match[1]))

    @property
    def pattern(self) -> Bool[Tensor, "d d"]:
        twice = 2 * torch.arange(self.diameter) - (self.diameter - 1)
        return twice[:, None] ** 2 + twice**2 <= self.diameter**2

    @property
    def text(self) -> str:
        return f"disc:{self.diameter}"


@dataclass(frozen=True)
class Cross(Stamp):
    """Crosses of two bars of `length` × `thickness` pixels, one upright, that share their centre.

    Text: "cross:9/3". Raises `InvalidInput` where the thickness is no less than the length, or where one of the two is
    even and the other odd, so that no pixel grid centres both.
    """

    shape: ClassVar[str] = "cross"

    length: int
    thickness: int
    count: int = 1

    def __post_init__(self) -> None:
        _check_side("length", self.length)
        _check_side("thickness", self.thickness)
        check_whole("patch count", self.count)
        if self.thickness >= self.length or (self.length - self.thickness) % 2:
            raise InvalidInput(
                f"patch {self.text} has bars {self.length} long and {self.thickness} thick; the thickness must be "
                "less than the length, and both even or both odd"
            )

    @classmethod
    def read(cls, text: str) -> Cross | None:
        """Read "cross:9/3"."""
        match = re.fullmatch(r"cross:(\d{1,9})/(\d{1,9})", text, re.IGNORECASE)
        return None if match is None else cls(int(match[1]), int(match[2]))

    @property
    def pattern(self) -> Bool[Tensor, "l l"]:
        at = torch.arange(self.length) - (self.length - self.thickness) // 2
        bar = (at >= 0) & (at < self.thickness)
        return bar[:, None] | bar

    @property
    def text(self) -> str:
        return f"cross:{self.length}/{self.thickness}"


@dataclass(frozen=True)
class Polygon(Stamp):
    """Polygons with whole numbers as corners `(row, column)`: the pixels whose centres lie inside or on an edge.

    Pixel (r, c) is the square from (r, c) to (r+1, c+1). Inside is what a ray leaves an odd number of times, so a
    line that crosses itself encloses what is wound once. Where the polygon lies does not matter, only its shape. Text:
    "polygon:0/0;0/7;7/7" (row/column). Raises `InvalidInput` for fewer than three corners, and where it holds no
    pixel's centre.
    """

    shape: ClassVar[str] = "polygon"

    corners: str
    count: int = 1

    def __post_init__(self) -> None:
        check_whole("patch count", self.count)
        points = _points(self.corners)
        if not bool(_inside(points).any()):
            raise InvalidInput(f"patch {self.text} holds no pixel's centre; take a larger polygon")

    @classmethod
    def of(cls, corners: list[tuple[int, int]], count: int = 1) -> Polygon:
        """The polygon with these corners (row, column)."""
        return cls(";".join(f"{row}/{column}" for row, column in corners), count)

    @classmethod
    def read(cls, text: str) -> Polygon | None:
        """Read "polygon:0/0;0/7;7/7"."""
        return cls(text[8:]) if text.lower().startswith("polygon:") else None

    @property
    def pattern(self) -> Bool[Tensor, "h w"]:
        return cropped(_inside(_points(self.corners)))

    @property
    def text(self) -> str:
        return f"polygon:{self.corners}"


@dataclass(frozen=True)
class Mask(Stamp):
    """Copies of any set of pixels: `pixels` as `bitmap.pack` writes them, without empty rows or columns around them.

    `Mask.of(array)` takes a boolean array or tensor [h,w]; "mask:sticker.png" reads a black-and-white picture, in
    which white is the patch. `name` is the text by which the user knows the shape; masks are equal when their pixels
    are. Raises `InvalidInput` for a mask without a pixel.
    """

    shape: ClassVar[str] = "mask"

    pixels: str
    count: int = 1
    name: str = ""

    def __post_init__(self) -> None:
        check_whole("patch count", self.count)
        check_name(self.name)
        array = unpack(self.pixels)
        if not array.any():
            raise InvalidInput("patch mask holds no pixel; mark at least one (white in a picture)")
        if max(array.shape) > LONGEST:
            raise InvalidInput(f"patch mask is {self.pixels.split('/')[0]} pixels; take at most {LONGEST} along a side")
        if cropped(as_tensor(array)).shape != array.shape:
            raise InvalidInput("patch mask has an empty row or column at its border; `Mask.of` cuts these off")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and (self.pixels, self.count) == (other.pixels, other.count)

    def __hash__(self) -> int:
        return hash((self.pixels, self.count))

    @classmethod
    def of(cls, pixels: Bool[Tensor, "h w"] | np.ndarray, count: int = 1, name: str = "") -> Mask:
        """The mask of a boolean array or tensor."""
        given = torch.as_tensor(pixels)
        if given.dtype != torch.bool or given.ndim != 2 or not bool(given.any()):
            raise InvalidInput(
                f"patch mask is {tuple(given.shape)} of {given.dtype}; give booleans [h,w], at least one of them true"
            )
        return cls(pack(cropped(given)), count, name)

    @classmethod
    def read(cls, text: str) -> Mask | None:
        """Read "mask:sticker.png", a black-and-white picture in which white is the patch, or "mask:HxW/BASE64"."""
        if not text.lower().startswith("mask:"):
            return None
        if is_packed(text[5:]):
            return cls(text[5:])
        return cls.of(black_and_white(text[5:]), name=f"mask:{text[5:]}")

    @property
    def pattern(self) -> Bool[Tensor, "h w"]:
        return as_tensor(unpack(self.pixels))

    @property
    def text(self) -> str:
        return self.name or f"mask:{self.pixels}"


def rotated(patch: Patches, degrees: float) -> Patches:
    """Returns the shape turned counterclockwise by `degrees`, to four decimals, about the centre of its bounding box.

    A pixel belongs to it iff its centre, turned back, falls on a pixel of the shape; multiples of 90° move pixels onto
    pixels. The result is a rectangle where the shape is one and stays one, else a `Mask` with the text "3x8@45".
    Raises `InvalidInput` for shapes that are not one set of pixels, moved, and where nothing is left of a thin one.
    """
    if isinstance(patch, PatchThreat):
        pattern, text = torch.ones(patch.height, patch.width, dtype=torch.bool), f"{patch.height}x{patch.width}"
    elif isinstance(patch, Stamp):
        pattern, text = patch.pattern, patch.text
    else:
        raise InvalidInput(f"patch {patch} cannot be rotated; rotate a rectangle, disc, cross, polygon or mask")
    turn = round(degrees, 4) % 360
    if turn % 90 == 0:
        turned = pattern.rot90(round(turn / 90))
    else:
        turned = _turned(pattern, turn)
        if not bool(turned.any()):
            raise InvalidInput(f"patch {text}@{_decimal(turn)} covers no pixel's centre; take a thicker shape")
    turned = cropped(turned)
    if bool(turned.all()):
        return PatchThreat(turned.shape[0], turned.shape[1], patch.count)
    if isinstance(patch, Stamp) and torch.equal(turned, pattern):
        return patch
    return Mask.of(turned, patch.count, f"{text}@{_decimal(turn)}")


def _decimal(degrees: float) -> str:
    return f"{degrees:.4f}".rstrip("0").rstrip(".")


def _turned(pattern: Bool[Tensor, "h w"], degrees: float) -> Bool[Tensor, "tall wide"]:
    h, w = pattern.shape
    side = int(hypot(h, w)) + 2
    # An odd number of pixels has a centre in the middle of it, an even one a line: the canvas is as the shape is.
    rows, columns = (torch.arange(side + (side - m) % 2, dtype=torch.float64) for m in (h, w))
    v, u = rows[:, None] - (len(rows) - 1) / 2, columns - (len(columns) - 1) / 2  # down, right
    c, s = cos(radians(degrees)), sin(radians(degrees))
    # Rounded, so that machines whose sines differ in the last bit agree on centres that fall on a border.
    row = ((v * c + u * s) + h / 2).mul(2**20).round().div(2**20).floor().long()
    column = ((u * c - v * s) + w / 2).mul(2**20).round().div(2**20).floor().long()
    inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
    return inside & pattern[row.clamp(0, h - 1), column.clamp(0, w - 1)]


def cropped(pixels: Bool[Tensor, "H W"]) -> Bool[Tensor, "h w"]:
    """Returns the smallest rectangle that holds the marked pixels."""
    rows, columns = (pixels.any(dim=dim).nonzero()[:, 0] for dim in (1, 0))
    return pixels[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1].contiguous()


@lru_cache(maxsize=64)
def _points(corners: str) -> tuple[tuple[int, int], ...]:
    if not isinstance(corners, str) or re.fullmatch(r"\d{1,4}/\d{1,4}(;\d{1,4}/\d{1,4}){2,99}", corners) is None:
        raise InvalidInput(
            f"patch polygon is {str(corners)[:60]!r}; give 3 to 100 corners as row/column, as in 0/0;0/7;7/7"
        )
    points = [(int(row), int(column)) for row, column in (each.split("/") for each in corners.split(";"))]
    if max(map(max, points)) > _FARTHEST:
        raise InvalidInput(f"patch polygon reaches {max(map(max, points))}; take at most {_FARTHEST}")
    return tuple(points)


def _inside(points: tuple[tuple[int, int], ...]) -> Bool[Tensor, "h w"]:
    """Pixels whose centre is on an edge, or a ray from it to the right crosses an odd number: in whole numbers."""
    array = np.array(points, np.int64)
    array = 2 * (array - array.min(axis=0))  # centres are odd numbers, corners even: no centre's row holds a corner
    height, width = array.max(axis=0) // 2
    row, column = 2 * np.arange(height)[:, None] + 1, 2 * np.arange(width)[None] + 1
    crossed, on = np.zeros((2, height, width), np.bool_)
    for (r0, c0), (r1, c1) in zip(array, np.roll(array, -1, axis=0), strict=True):
        if r0 == r1:
            continue
        if r0 > r1:
            r0, c0, r1, c1 = r1, c1, r0, c0
        ahead = (c1 - c0) * (row - r0) - (column - c0) * (r1 - r0)  # how far right of the centre, times r1 - r0
        meets = (r0 < row) & (row < r1)
        crossed ^= meets & (ahead > 0)
        on |= meets & (ahead == 0)
    return torch.from_numpy(crossed | on)


def _check_side(name: str, value: object) -> None:
    check_whole(f"patch {name}", value)
    assert isinstance(value, int)
    if value > LONGEST:
        raise InvalidInput(f"patch {name} is {value}; take at most {LONGEST}")
