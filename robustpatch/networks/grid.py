"""A network that sees a few cells of a grid at a time, and all choices of cells in one pass."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.kinds import Blocks, Columns, GridBlocks, GridColumns
from robustpatch.errors import InvalidInput
from robustpatch.networks.block import BlockNet
from robustpatch.networks.one_pass import check_shape
from robustpatch.networks.strip import StripNet


class GridNet(nn.Module):
    """Logits of every choice of cells in one pass; the receptive field of a choice is exactly its cells.

    Each cell is read once, alone, by a strip or block network that knows its place; a choice is the sum of its cells'
    features, read by a small network: N choices cost one reading of the image and N small products. Where the size
    does not divide the image, it is continued by black pixels, constants that no patch can reach.

    Args:
        ablation: `GridColumns` or `GridBlocks`, the only one it can be used with.
        image_size: (height, width). num_classes: K. in_channels: C. features: of a cell. hidden: units of the layer
            between the sum and the logits.
    """

    choices: Tensor

    def __init__(
        self,
        ablation: Ablation,
        *,
        image_size: tuple[int, int] = (28, 28),
        num_classes: int = 10,
        in_channels: int = 1,
        features: int = 256,
        hidden: int = 256,
    ) -> None:
        super().__init__()
        if not isinstance(ablation, GridColumns | GridBlocks):
            raise InvalidInput(f"ablation is {ablation}; a grid network sees cells of a grid")
        self.ablation, self.image_size, self.in_channels = ablation, image_size, in_channels
        cell, grid = ablation.cell(*image_size), ablation.grid(*image_size)
        self._padded = cell[0] * grid[0], cell[1] * grid[1]
        size, common = ablation.size, {"image_size": self._padded, "num_classes": features, "in_channels": in_channels}
        if isinstance(ablation, GridColumns):
            self.cells = StripNet(Columns(size, stride=size), widths=(32, 64, 64), **common)
        else:
            self.cells = BlockNet(Blocks(size, stride=size), **common)
        self.register_buffer("choices", ablation.choices(*image_size), persistent=False)
        self.norms = nn.ModuleList([nn.BatchNorm1d(features), nn.BatchNorm1d(hidden)])
        self.hidden = nn.Linear(features, hidden, bias=False)
        self.head = nn.Linear(hidden, num_classes)

    def score_all(self, x: Float[Tensor, "B C H W"], index: Int[Tensor, "..."] | None = None) -> Float[Tensor, "B n K"]:
        """Logits of all choices, or of those in `index`, [n] for every image alike or [B,n], at the cost of those."""
        check_shape(x, self.in_channels, self.image_size)
        below, right = (padded - own for padded, own in zip(self._padded, self.image_size, strict=True))
        cells = self.cells.score_all(nn.functional.pad(x, (0, right, 0, below)))
        choices = self.choices if index is None else self.choices[index]
        chosen = _select(cells, choices[..., 0])
        for k in range(1, choices.shape[-1]):
            chosen = chosen + _select(cells, choices[..., k])
        leading = chosen.shape[:2]
        chosen = self.norms[0](chosen.flatten(0, 1)).relu()
        chosen = self.norms[1](self.hidden(chosen)).relu()
        return self.head(chosen).unflatten(0, leading)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N K"]:
        """The same as `score_all`."""
        return self.score_all(x)


def _select(cells: Tensor, index: Tensor) -> Tensor:
    """The cells [B,n,D] of an index [n] for all images alike, whose backward pass is fast, or [B,n]."""
    if index.ndim == 1:
        return cells.index_select(1, index)
    return cells[torch.arange(len(cells), device=cells.device)[:, None], index]
