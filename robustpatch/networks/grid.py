"""A network that sees a few cells of a grid at a time, and all choices of cells in one pass."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from robustpatch.ablations.base import Ablation, Grid
from robustpatch.networks.block import BlockNet
from robustpatch.networks.one_pass import OnePass
from robustpatch.networks.strip import StripNet


class GridNet(OnePass):
    """Logits of every choice of cells in one pass; the receptive field of a choice is exactly its cells.

    Each cell is read once, alone, by a strip or block network that knows its place; a choice is the sum of its cells'
    features, read by a small network: N choices cost one reading of the image and N small products. Where the size
    does not divide the image, it is continued by black pixels, constants that no patch can reach.

    Args:
        ablation: `GridColumns` or `GridBlocks`, the only one it can be used with.
        features: of a cell. hidden: units of the layer between the sum and the logits.
    """

    ablation: Grid
    choices: Tensor
    kinds = (Grid,)
    sees = "a grid network sees cells of a grid"

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
        super().__init__(ablation, image_size, in_channels)
        cell, grid = self.ablation.cell(*image_size), self.ablation.grid(*image_size)
        self._padded = cell[0] * grid[0], cell[1] * grid[1]
        common = {"image_size": self._padded, "num_classes": features, "in_channels": in_channels}
        single = self.ablation.single_cells
        if StripNet.can_see(single):
            self.cells = StripNet(single, widths=(32, 64, 64), **common)
        else:
            self.cells = BlockNet(single, **common)
        self.register_buffer("choices", self.ablation.choices(*image_size), persistent=False)
        self.norms = nn.ModuleList([nn.BatchNorm1d(features), nn.BatchNorm1d(hidden)])
        self.hidden = nn.Linear(features, hidden, bias=False)
        self.head = nn.Linear(hidden, num_classes)

    def score_every(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N K"]:
        return self._score(x, self.choices)

    def score_some(self, x: Float[Tensor, "B C H W"], index: Int[Tensor, "B n"]) -> Float[Tensor, "B n K"]:
        return self._score(x, self.choices[index])

    def _score(self, x: Tensor, choices: Int[Tensor, "... keep"]) -> Float[Tensor, "B n K"]:
        below, right = (padded - own for padded, own in zip(self._padded, self.image_size, strict=True))
        cells = self.cells.score_all(nn.functional.pad(x, (0, right, 0, below)))
        chosen = _select(cells, choices[..., 0])
        for k in range(1, choices.shape[-1]):
            chosen = chosen + _select(cells, choices[..., k])
        leading = chosen.shape[:2]
        chosen = self.norms[0](chosen.flatten(0, 1)).relu()
        chosen = self.norms[1](self.hidden(chosen)).relu()
        return self.head(chosen).unflatten(0, leading)


def _select(cells: Tensor, index: Tensor) -> Tensor:
    """The cells [B,n,D] of an index [n] for all images alike, whose backward pass is the fastest, or [B,n]."""
    if index.ndim == 1:
        return cells.index_select(1, index)
    return cells.gather(1, index[..., None].expand(-1, -1, cells.shape[2]))
