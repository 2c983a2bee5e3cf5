"""What the attacker may change: rectangles of one size, anywhere inside the image."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt
from typing import TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from robustpatch.errors import InvalidInput

_GRAMMAR = re.compile(r"(?:(\d{1,9})\s*\*\s*)?(?:(\d{1,9})(?:\s*x\s*(\d{1,9}))?|(\d{1,9}(?:\.\d{1,30})?)\s*%)")
_FORMS = 'use "5x5" or "5" (height x width in pixels), "2%" (of the area), "2*5x5" (two patches)'


@dataclass(frozen=True)
class PatchThreat:
    """The attacker overwrites all channels of up to `count` axis-aligned rectangles of `height` × `width` pixels.

    Each rectangle lies wholly inside the image (a patch does not wrap around the border, though ablations do); the
    rectangles may overlap, and their content is any value in [0, 1]. A smaller rectangle is contained in the threat.

    Raises `InvalidInput` for sizes or counts below one.
    """

    height: int
    width: int
    count: int = 1

    def __post_init__(self) -> None:
        for name in ("height", "width", "count"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidInput(f"patch {name} is {value!r}; it must be a whole number of at least 1")

    @classmethod
    def parse(cls, text: str, image_size: tuple[int, int]) -> PatchThreat:
        """Read "5x5", "5", "2x10" (height × width), "2%" (the smallest square of at least that share of the area),
        "2*5x5" (two patches), and check that it fits an image of `image_size` = (height, width).

        On 224×224, 1%, 2% and 3% are the squares of side 23, 32 and 39. Raises `InvalidInput`.
        """
        match = _GRAMMAR.fullmatch(text.strip().lower())
        if match is None:
            raise InvalidInput(f"patch is {text!r}, which is no patch size; {_FORMS}")
        count, first, second, percent = match.groups()
        if percent is not None:
            area = Fraction(percent) / 100 * image_size[0] * image_size[1]
            height = width = isqrt(-(-area.numerator // area.denominator) - 1) + 1 if area > 0 else 0
        else:
            height = int(first)
            width = int(second) if second is not None else height
        threat = cls(height, width, int(count) if count is not None else 1)
        threat.check_fits(*image_size)
        return threat

    @property
    def threats(self) -> tuple[PatchThreat, ...]:
        """The rectangles this threat is made of: itself alone (see `AnyOf`)."""
        return (self,)

    def check_fits(self, height: int, width: int) -> None:
        """Raise `InvalidInput` when the patch is larger than an image of `height` × `width`, or there are too many."""
        if self.height > height or self.width > width:
            raise InvalidInput(
                f"patch {self} (height x width) is larger than the image, {height}x{width}; "
                f"take at most {height}x{width}"
            )
        if self.count > height * width:
            raise InvalidInput(
                f"patch count is {self.count}, more than the {height * width} pixels of the image; take fewer patches"
            )

    def placements(self, height: int, width: int) -> Int[Tensor, "L 2"]:
        """Top-left corners `(row, column)` of one rectangle in row-major order; L = (H-h+1)·(W-w+1)."""
        self.check_fits(height, width)
        rows = torch.arange(height - self.height + 1)
        columns = torch.arange(width - self.width + 1)
        return torch.cartesian_prod(rows, columns).reshape(-1, 2)

    def footprint(self, corners: Int[Tensor, "P count 2"], height: int, width: int) -> Bool[Tensor, "P H W"]:
        """The pixels that rectangles with these corners `(row, column)` cover, one mask for each of P choices."""
        row = torch.arange(height, device=corners.device)
        column = torch.arange(width, device=corners.device)
        top, left = corners[..., 0, None], corners[..., 1, None]
        in_rows = (row >= top) & (row < top + self.height)
        in_columns = (column >= left) & (column < left + self.width)
        return (in_rows[..., :, None] & in_columns[..., None, :]).any(dim=1)

    def __str__(self) -> str:
        size = f"{self.height}x{self.width}"
        return size if self.count == 1 else f"{self.count}*{size}"


@dataclass(frozen=True)
class AnyOf:
    """The attacker picks one of several threats after seeing the image; what is certified holds for each of them.

    `AnyOf([PatchThreat(2, 10), PatchThreat(10, 2)])`: a 2×10 or a 10×2 rectangle. Nested `AnyOf` are flattened and
    repeated threats dropped. Raises `InvalidInput` when empty.
    """

    threats: tuple[PatchThreat, ...]

    def __init__(self, threats: Iterable[Threat]) -> None:
        flat = dict.fromkeys(one for threat in threats for one in threat.threats)
        if not flat:
            raise InvalidInput("threats is empty; name at least one PatchThreat")
        object.__setattr__(self, "threats", tuple(flat))

    @classmethod
    def rectangles(cls, area: int, image_size: tuple[int, int]) -> AnyOf:
        """All rectangles of at most `area` pixels that fit the image, given by the maximal ones."""
        height, width = image_size
        widest = [(h, min(area // h, width)) for h in range(1, min(area, height) + 1)]
        maximal = [(h, w) for i, (h, w) in enumerate(widest) if i + 1 == len(widest) or widest[i + 1][1] < w]
        return cls(PatchThreat(h, w) for h, w in maximal)

    def check_fits(self, height: int, width: int) -> None:
        """Raise `InvalidInput` when any of the patches is larger than an image of `height` × `width`."""
        for threat in self.threats:
            threat.check_fits(height, width)

    def __str__(self) -> str:
        return ",".join(map(str, self.threats))


Threat: TypeAlias = PatchThreat | AnyOf


def parse_threat(text: str, image_size: tuple[int, int]) -> Threat:
    """Read one patch size, or several separated by commas ("2x10,10x2": one or the other). See `PatchThreat.parse`."""
    threats = [PatchThreat.parse(part, image_size) for part in text.split(",")]
    return threats[0] if len(threats) == 1 else AnyOf(threats)
