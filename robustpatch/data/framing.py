"""Framing: a picture of any size becomes an image of the size that a classifier sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from robustpatch.errors import InvalidInput

INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


@dataclass(frozen=True)
class Framing:
    """Pictures are scaled and cropped in the middle to `size` (height, width).

    Scaled to what is said by `scaled`: a number, the length of the shorter side; a height and a width, whatever the
    picture's shape; None, as little as covers `size`. `interpolation`: one of `INTERPOLATIONS`.
    """

    size: tuple[int, int]
    scaled: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise InvalidInput(f"interpolation is {self.interpolation!r}; use {', '.join(INTERPOLATIONS)}")

    def __call__(self, picture: Tensor) -> Tensor:
        """The image uint8 [C,h,w] of a picture uint8 [C,H,W]."""
        from torchvision.transforms import InterpolationMode  # slow to import
        from torchvision.transforms.v2.functional import center_crop, resize

        to = self._scaled_to(picture.shape[1:])
        mode = InterpolationMode(self.interpolation)
        return center_crop(resize(picture, to, mode, antialias=True), list(self.size))

    def __str__(self) -> str:
        height, width = self.size
        if self.scaled is None:
            to = "to cover it"
        elif isinstance(self.scaled, int):
            to = f"to {self.scaled} on the shorter side"
        else:
            to = f"to {self.scaled[0]}×{self.scaled[1]}"
        cropped = "" if self.scaled == self.size else f" and cropped to {height}×{width}"
        return f"scaled {to} ({self.interpolation}){cropped}"

    def _scaled_to(self, own: Sequence[int]) -> list[int]:
        if isinstance(self.scaled, tuple):
            return list(self.scaled)
        if self.scaled is not None:
            scale = self.scaled / min(own)
            return [self.scaled if side == min(own) else int(side * scale) for side in own]
        scale = max(side / one for one, side in zip(own, self.size, strict=True))
        return [max(side, round(one * scale)) for one, side in zip(own, self.size, strict=True)]
