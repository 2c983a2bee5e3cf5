"""A network that sees one block at a time, and all blocks of an image in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.kinds import Blocks
from robustpatch.errors import InvalidInput
from robustpatch.networks.one_pass import check_shape


class BlockNet(nn.Module):
    """Logits of every block in one pass; the receptive field of block n is exactly block n.

    The image is continued around its border, so that every block is an unbroken rectangle, also where it wraps. A
    first layer as large as the block reads it whole (a valid convolution, written as one matrix product over all
    windows), and the layers after it look at one block only. The number of the block enters as a learned embedding.
    All pixels of a block are kept, so NULL never occurs in it and needs no code.

    Per-channel batch normalisation is the only normalisation: in evaluation mode it is a fixed affine map, and mixes
    neither blocks nor images.

    Args:
        ablation: `Blocks`, the only one it can be used with.
        image_size: (height, width). num_classes: K. in_channels: C. widths: units of the hidden layers.
    """

    def __init__(
        self,
        ablation: Ablation,
        *,
        image_size: tuple[int, int] = (28, 28),
        num_classes: int = 10,
        in_channels: int = 1,
        widths: Sequence[int] = (256, 256),
    ) -> None:
        super().__init__()
        if not isinstance(ablation, Blocks):
            raise InvalidInput(f"ablation is {ablation}; a block network sees blocks")
        if len(widths) < 1:
            raise InvalidInput(f"widths is {widths}; give at least one number of units")
        self.ablation, self.image_size, self.in_channels = ablation, image_size, in_channels
        rows, columns = ablation.axes(*image_size)
        self._axes = rows, columns
        self.embedding = nn.Parameter(torch.randn(rows.count * columns.count, widths[0]) * 0.1)
        inputs = [in_channels * rows.size * columns.size, *widths]
        pairs = zip(inputs, widths, strict=False)
        self.layers = nn.ModuleList(nn.Linear(before, after, bias=False) for before, after in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm1d(units) for units in widths)
        self.head = nn.Linear(widths[-1], num_classes)

    def score_all(self, x: Float[Tensor, "B C H W"], index: Int[Tensor, "..."] | None = None) -> Float[Tensor, "B n K"]:
        """Logits of all blocks, or of those in `index`, [n] for every image alike or [B,n], at the cost of those."""
        check_shape(x, self.in_channels, self.image_size)
        rows, columns = self._axes
        around = torch.cat([x, x[:, :, : rows.size - 1]], dim=2)
        around = torch.cat([around, around[:, :, :, : columns.size - 1]], dim=3)
        windows = around.unfold(2, rows.size, rows.stride).unfold(3, columns.size, columns.stride)
        if index is None:
            seen = windows.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
            return self._score(seen, self.embedding)
        row, column = torch.div(index, columns.count, rounding_mode="floor"), index % columns.count
        image = torch.arange(len(x), device=x.device)[:, None]
        return self._score(windows.permute(0, 2, 3, 1, 4, 5)[image, row, column], self.embedding[index])

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N K"]:
        """The same as `score_all`."""
        return self.score_all(x)

    def _score(self, seen: Tensor, embedding: Tensor) -> Float[Tensor, "B n K"]:
        leading = seen.shape[:2]
        x = self.layers[0](seen.flatten(2)) + embedding
        x = self.norms[0](x.flatten(0, 1)).relu()
        for layer, norm in zip(self.layers[1:], self.norms[1:], strict=True):
            x = norm(layer(x)).relu()
        return self.head(x).unflatten(0, leading)
