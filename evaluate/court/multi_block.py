"""Multi-block smoothing (Levine & Feizi 2020): pairs of the blocks of a grid, numbered by the published code."""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import Any

import torch
from torch import Tensor

from evaluate.court.entry import Entry, claim, one_patch, sizes
from evaluate.court.levine_feizi import ColumnSmoothing
from evaluate.court.views import Base, ask

_MOST = 45  # blocks; all their pairs are shown


class MultiBlock(ColumnSmoothing):
    """Every pair of the image's blocks of `size` × `size` is a view. With N blocks, of which a square patch of side m
    meets at most a = (ceil((m-1)/size)+1)², Δ = C(N,2) - C(N-a,2).

    Block i lies at column i mod (H/size) and row (i - that) / (W/size), rounded down: right for square images alone.
    """

    def block(self, number: int, height: int, width: int) -> tuple[int, int]:
        column = number % (height // self.size)
        return (number - column) // (width // self.size), column

    def kept(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        number = height * width // self.size**2
        if not 2 <= number <= _MOST or min(height, width) < self.size:
            raise ValueError(f"{number} blocks; two to {_MOST} can be shown in pairs")
        blocks = torch.zeros(number, height, width, dtype=torch.bool)
        for n in range(number):
            row, column = (self.size * at for at in self.block(n, height, width))
            if row + self.size > height or column + self.size > width:
                raise ValueError(f"block {n} lies outside of the image, an index error in the published code")
            blocks[n, row : row + self.size, column : column + self.size] = True
        return torch.stack([blocks[i] | blocks[j] for i, j in combinations(range(number), 2)])

    def counts(self, x: Tensor) -> Tensor:
        return (ask(self.base, x, self.kept(x)).softmax(dim=2) >= self.threshold).sum(dim=1)

    def certify(self, x: Tensor, threat: Any) -> Any:
        side, _ = one_patch(threat, square=True)
        number = x.shape[2] * x.shape[3] // self.size**2
        met = min(number, (-(-(side - 1) // self.size) + 1) ** 2)
        most = 2 * (comb(number, 2) - comb(number - met, 2))
        counts, order = torch.sort(self.counts(x), dim=1, descending=True, stable=True)
        lead = counts[:, 0] - counts[:, 1]
        return claim(order[:, 0], (lead > most) | ((lead == most) & (order[:, 0] < order[:, 1])))


class Oblong(MultiBlock):
    """The same, with block i at row i div (W/size) and column i mod (W/size); sides that `size` does not divide are
    refused.
    """

    def block(self, number: int, height: int, width: int) -> tuple[int, int]:
        if height % self.size or width % self.size:
            raise ValueError(f"blocks of {self.size} do not tile {height}x{width} pixels")
        return divmod(number, width // self.size)


def printed(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> MultiBlock:
    return MultiBlock(base, num_classes)


def repaired(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> Oblong:
    return Oblong(base, num_classes)


ENTRY = Entry(
    module="multi_block",
    title="Multi-block smoothing on oblong images (Levine & Feizi 2020)",
    claim="No square patch of that side changes the class with the most votes.",
    fault="The published code divides a block's number by the number of rows where it needs that of columns. On wide "
    "images several numbers are the same block and a part of the image is never shown, so that a patch meets more "
    "pairs than are counted; on high ones an index error ends it. On square images, the only ones of the paper, it is "
    "right.",
    repair="Rows and columns of blocks are counted by the width.",
    read="code: alevine0/patchSmoothing, utils_multi_block.py",
    adapted="Two blocks of 2×2 (the paper: 4×4 and others); quotients are rounded down, as PyTorch did for integers "
    "when the code was written. Images that are square or wide, with at most 45 blocks.",
    printed=printed,
    repaired=repaired,
    sizes=sizes("1x2x4/1x1", "1x2x6/1x1", "1x2x8/1x1", "1x4x6/1x1", "1x4x8/1x1"),
)
