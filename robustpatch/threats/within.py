"""Patches that may lie only on allowed pixels: a sign's face, a number plate; one region, or one for each image."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches, Placements
from robustpatch.threats.bitmap import as_tensor, check_name, pack, unpack


class Allowed(Placements):
    """Those of the `base`'s places whose numbers are `kept`, in their order."""

    def __init__(self, base: Placements, kept: Int[Tensor, " L"]) -> None:
        self.base, self.kept, self.size = base, kept, base.size

    @property
    def anchors(self) -> Int[Tensor, "L 2"]:
        return self.base.anchors[self.kept]

    def corners(self, anchors: Int[Tensor, "... 2"]) -> Int[Tensor, "... 2"]:
        return self.base.corners(anchors)

    @property
    def extent(self) -> tuple[int, int]:
        return self.base.extent

    @property
    def box(self) -> tuple[int, int]:
        return self.base.box

    @property
    def pixels(self) -> int:
        return self.base.pixels

    def __len__(self) -> int:
        return len(self.kept)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Allowed) and self.base == other.base and torch.equal(self.kept, other.kept)

    def __hash__(self) -> int:
        return hash((self.base, len(self.kept)))

    @cached_property
    def _number(self) -> Int[Tensor, " places"]:
        number = torch.full((len(self.base),), -1)
        number[self.kept] = torch.arange(len(self.kept))
        return number

    def footprint(self, index: Int[Tensor, " n"]) -> Bool[Tensor, "n H W"]:
        return self.base.footprint(self.kept.to(index.device)[index])

    def sets(self) -> tuple[list[Bool[Tensor, "h w"]], Int[Tensor, "L 3"]]:
        patterns, places = self.base.sets()
        return patterns, places[self.kept]

    def find(self, anchors: Int[Tensor, "n 2"]) -> Int[Tensor, " n"]:
        place = self.base.find(anchors)
        return torch.where(place < 0, -1, self._number.to(place.device)[place.clamp(min=0)])

    def hits(self, masks: Bool[Tensor, "n H W"]) -> Bool[Tensor, "L n"]:
        return self.base.hits(masks)[self.kept.to(masks.device)]

    def covered(self, member: Bool[Tensor, "M L"]) -> Bool[Tensor, "M H W"]:
        every = member.new_zeros(len(member), len(self.base))
        every[:, self.kept.to(member.device)] = member
        return self.base.covered(every)

    def means(self, values: Float[Tensor, "B H W"]) -> Float[Tensor, "B L"]:
        return self.base.means(values)[:, self.kept.to(values.device)]


class Confined(Patches):
    """A patch of the shape of `patch`, as many and as large, that may not lie everywhere."""

    patch: Patches

    @property
    def count(self) -> int:  # type: ignore[override]
        return self.patch.count

    @property
    def height(self) -> int:  # type: ignore[override]
        return self.patch.height

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.patch.width

    @staticmethod
    def is_one_shape(patch: object) -> bool:
        """True for what can be confined: one shape that is not confined already."""
        return isinstance(patch, Patches) and not isinstance(patch, Confined)


@dataclass(frozen=True)
class Within(Confined):
    """A patch of `patch`'s shape that lies wholly on allowed pixels: every pixel of its footprint is in the region.

    `region` is a set of pixels of the whole image, as `bitmap.pack` writes it; `Within.of(patch, array)` takes a
    boolean array or tensor [H,W]. Text: "5x5 in region.png", a black-and-white picture of the images' size in which
    white is allowed. Raises `InvalidInput` on images of another size, and where no place of the patch is allowed.
    """

    shape: ClassVar[str] = "within"

    patch: Patches
    region: str
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        unpack(self.region)
        check_name(self.name)
        if not self.is_one_shape(self.patch):
            raise InvalidInput(f"patch in a region is {self.patch}; give one shape, such as 5x5 or disc:7")

    @classmethod
    def of(cls, patch: Patches, region: Bool[Tensor, "H W"] | np.ndarray, name: str = "") -> Within:
        """The threat of a region given as a boolean array or tensor."""
        return cls(patch, pack(region), name)

    def times(self, count: int) -> Within:
        return Within(self.patch.times(count), self.region, self.name)

    @property
    def allowed(self) -> Bool[Tensor, "H W"]:
        """The pixels on which the patch may lie."""
        return as_tensor(unpack(self.region))

    def on(self, height: int, width: int) -> Within:
        size = unpack(self.region).shape
        if size != (height, width):
            raise InvalidInput(
                f"region of patch {self} is {size[0]}x{size[1]} pixels, and the images are {height}x{width}; give a "
                "region of the images' size"
            )
        fitted = self.patch.on(height, width)
        return self if fitted == self.patch else Within(fitted, self.region, self.name)

    def families(self, height: int, width: int) -> tuple[Placements, ...]:
        self.check_fits(height, width)
        outside = ~self.allowed[None]
        found: dict[Placements, Placements] = {}
        families = self.patch.families(height, width)
        for one in families:
            if one not in found:
                found[one] = Allowed(one, (~one.hits(outside)[:, 0]).nonzero()[:, 0])
                if len(found[one]) == 0:
                    raise InvalidInput(
                        f"region of patch {self} holds no place for the patch; allow more pixels or take a smaller one"
                    )
        return tuple(found[one] for one in families)

    def __str__(self) -> str:
        return f"{self.patch} in {self.name or self.region}"

    def to_dict(self) -> dict[str, Any]:
        return {"shape": self.shape, "patch": self.patch.to_dict(), "region": self.region, "name": self.name}
