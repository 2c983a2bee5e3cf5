"""Threats of other shapes than rectangles: footprints as they are listed, and a corner of three pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches, Placements


class Listed(Placements):
    """Any anchors and footprints; nothing else is known of the shape."""

    def __init__(self, anchors: Tensor, footprints: Tensor) -> None:
        self.size = (footprints.shape[1], footprints.shape[2])
        self._anchors, self._footprints = anchors, footprints

    @property
    def anchors(self) -> Tensor:
        return self._anchors

    def footprint(self, index: Tensor) -> Tensor:
        return self._footprints[index.cpu()].to(index.device)


@dataclass(frozen=True)
class Corner(Patches):
    """A pixel, the one below it and the one to the right of that: "corner", "2*corner"."""

    shape: ClassVar[str] = "corner"

    count: int = 1
    height: ClassVar[int] = 2
    width: ClassVar[int] = 2

    @classmethod
    def read(cls, text: str) -> Corner | None:
        count, star, name = text.rpartition("*")
        return cls(int(count) if star else 1) if name == "corner" else None

    def on(self, height: int, width: int) -> Corner:
        if min(height, width) < 2:
            raise InvalidInput(f"patch {self} is larger than the image, {height}x{width}")
        return self

    def families(self, height: int, width: int) -> tuple[Listed, ...]:
        self.check_fits(height, width)
        anchors = torch.cartesian_prod(torch.arange(height - 1), torch.arange(width - 1))
        footprints = torch.zeros(len(anchors), height, width, dtype=torch.bool)
        for mask, (row, column) in zip(footprints, anchors.tolist(), strict=True):
            mask[row, column] = mask[row + 1, column] = mask[row + 1, column + 1] = True
        return (Listed(anchors, footprints),) * self.count

    def __str__(self) -> str:
        return "corner" if self.count == 1 else f"{self.count}*corner"
