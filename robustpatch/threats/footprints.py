"""Any list of pixel sets, one of which the attacker overwrites."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import ClassVar
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput, check_whole
from robustpatch.storage.npz import read_arrays
from robustpatch.threats.base import Patches, Placements
from robustpatch.threats.bitmap import as_tensor, check_name, is_packed, pack, unpack


class Listed(Placements):
    """L sets of pixels [L,H,W], in the order given. The anchor of set l is (l, 0), its content the whole image."""

    def __init__(self, footprints: Bool[Tensor, "L H W"]) -> None:
        self._masks = footprints
        self.size = (footprints.shape[1], footprints.shape[2])

    @property
    def anchors(self) -> Int[Tensor, "L 2"]:
        numbers = torch.arange(len(self._masks))
        return torch.stack([numbers, torch.zeros_like(numbers)], dim=1)

    def corners(self, anchors: Int[Tensor, "... 2"]) -> Int[Tensor, "... 2"]:
        return torch.zeros_like(anchors)

    @property
    def box(self) -> tuple[int, int]:
        return self.size

    def __len__(self) -> int:
        return len(self._masks)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Listed) and torch.equal(self._masks, other._masks)

    def __hash__(self) -> int:
        return hash(tuple(self._masks.shape))

    def find(self, anchors: Int[Tensor, "n 2"]) -> Int[Tensor, " n"]:
        number, zero = anchors.unbind(dim=1)
        return torch.where((zero == 0) & (number >= 0) & (number < len(self)), number, -1)

    def footprint(self, index: Int[Tensor, " n"]) -> Bool[Tensor, "n H W"]:
        return self._masks.to(index.device)[index]


@dataclass(frozen=True)
class Footprints(Patches):
    """The attacker overwrites the pixels of up to `count` of the listed sets, which need not be alike.

    `masks` are the sets [n,H,W] as `bitmap.pack` writes them; `Footprints.of(array)` takes a boolean array or tensor.
    Text: "footprints:places.npz", written by `numpy.savez(FILE, masks=masks)`. Raises `InvalidInput` for a set
    without a pixel, sets that are listed twice, and images of another size.
    """

    shape: ClassVar[str] = "footprints"

    masks: str
    count: int = 1
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        check_whole("patch count", self.count)
        check_name(self.name)
        if self.name and not self.name.startswith("footprints:"):
            raise InvalidInput(f"footprints are named {one_line(self.name, 60)!r}; a name begins with footprints:")
        array = unpack(self.masks, 3)
        empty = np.flatnonzero(~array.any(axis=(1, 2)))
        if len(empty):
            raise InvalidInput(f"footprint {empty[0]} holds no pixel; mark at least one in each")
        if len(np.unique(array.reshape(len(array), -1), axis=0)) < len(array):
            raise InvalidInput("two of the footprints are equal; list each once")

    @classmethod
    def of(cls, masks: Bool[Tensor, "n H W"] | np.ndarray, count: int = 1, name: str = "") -> Footprints:
        """The threat of sets given as a boolean array or tensor."""
        return cls(pack(masks), count, name)

    @classmethod
    def read(cls, text: str) -> Footprints | None:
        """Read "footprints:FILE.npz", an archive of one array `masks` of booleans, or "footprints:nxHxW/BASE64"."""
        if not text.lower().startswith("footprints:"):
            return None
        place = text[11:]
        if is_packed(place):
            return cls(place)
        try:
            masks = read_arrays(place, {"masks": {"|b1": 3}})["masks"]
        except (OSError, ValueError, BadZipFile, zlib.error) as error:
            raise InvalidInput(
                f"footprints {one_line(place, 200)!r} cannot be read: {one_line(error, 300)}; write them with "
                "numpy.savez(FILE, masks=masks)"
            ) from error
        return cls.of(masks, name=f"footprints:{place}")

    @property
    def height(self) -> int:  # type: ignore[override]
        return unpack(self.masks, 3).shape[1]

    @property
    def width(self) -> int:  # type: ignore[override]
        return unpack(self.masks, 3).shape[2]

    def on(self, height: int, width: int) -> Footprints:
        if (self.height, self.width) != (height, width):
            raise InvalidInput(
                f"footprints are of images of {self.height}x{self.width} pixels, and these are {height}x{width}; give "
                "footprints of the images' size"
            )
        if self.count > height * width:
            raise InvalidInput(
                f"patch count is {self.count}, more than the {height * width} pixels of the image; take fewer patches"
            )
        return self

    def families(self, height: int, width: int) -> tuple[Placements, ...]:
        self.check_fits(height, width)
        return (Listed(as_tensor(unpack(self.masks, 3))),) * self.count

    def __str__(self) -> str:
        text = self.name or f"footprints:{self.masks}"
        return text if self.count == 1 else f"{self.count}*{text}"
