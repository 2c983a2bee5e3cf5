"""A network that sees one block at a time, and all blocks of an image in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.kinds import Blocks
from robustpatch.ablations.touched import Axis
from robustpatch.errors import InvalidInput
from robustpatch.networks.one_pass import OnePass, wrapped


class BlockNet(OnePass):
    """Logits of every block in one pass; the receptive field of block n is exactly block n.

    The image is continued around its border, so that every block is an unbroken rectangle, also where it wraps. A
    first layer as large as the block reads it whole (a valid convolution, written as one matrix product over all
    windows), and the layers after it look at one block only. The number of the block enters as a learned embedding.

    Args:
        ablation: `Blocks`, the only one it can be used with. widths: units of the hidden layers.
    """

    ablation: Blocks
    kinds = (Blocks,)
    sees = "a block network sees blocks"

    def __init__(
        self,
        ablation: Ablation,
        *,
        image_size: tuple[int, int] = (28, 28),
        num_classes: int = 10,
        in_channels: int = 1,
        widths: Sequence[int] = (256, 256),
    ) -> None:
        super().__init__(ablation, image_size, in_channels)
        if len(widths) < 1:
            raise InvalidInput(f"widths is {widths}; give at least one number of units")
        rows, columns = self.ablation.axes(*image_size)
        self._axes = rows, columns
        self.embedding = nn.Parameter(torch.randn(rows.count * columns.count, widths[0]) * 0.1)
        inputs = [in_channels * rows.size * columns.size, *widths]
        pairs = zip(inputs, widths, strict=False)
        self.layers = nn.ModuleList(nn.Linear(before, after, bias=False) for before, after in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm1d(units) for units in widths)
        self.head = nn.Linear(widths[-1], num_classes)

    def score_every(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N K"]:
        return self._score(_windows(x, *self._axes).flatten(1, 2), self.embedding)

    def score_some(self, x: Float[Tensor, "B C H W"], index: Int[Tensor, "B n"]) -> Float[Tensor, "B n K"]:
        return self._score(blocks(x, index, *self._axes), self.embedding[index])

    def _score(self, seen: Tensor, embedding: Tensor) -> Float[Tensor, "B n K"]:
        leading = seen.shape[:2]
        x = self.layers[0](seen.flatten(2)) + embedding
        x = self.norms[0](x.flatten(0, 1)).relu()
        for layer, norm in zip(self.layers[1:], self.norms[1:], strict=True):
            x = norm(layer(x)).relu()
        return self.head(x).unflatten(0, leading)


def blocks(
    x: Float[Tensor, "B C H W"], index: Int[Tensor, "B n"], rows: Axis, columns: Axis
) -> Float[Tensor, "B n C h w"]:
    """The pixels of the blocks in `index`, cut out of the image; past the border, its first pixels again."""
    row, column = torch.div(index, columns.count, rounding_mode="floor"), index % columns.count
    return _windows(x, rows, columns)[torch.arange(len(x), device=x.device)[:, None], row, column]


def _windows(x: Float[Tensor, "B C H W"], rows: Axis, columns: Axis) -> Float[Tensor, "B r c C h w"]:
    around = wrapped(wrapped(x, rows, dim=2), columns, dim=3)
    windows = around.unfold(2, rows.size, rows.stride).unfold(3, columns.size, columns.stride)
    return windows.permute(0, 2, 3, 1, 4, 5)
