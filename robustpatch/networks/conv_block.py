"""A convolutional network that sees one block at a time, and all blocks of an image in one pass: for natural images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.kinds import Blocks
from robustpatch.ablations.sparse import SparseAblation
from robustpatch.errors import InvalidInput
from robustpatch.networks.block import blocks
from robustpatch.networks.convolution import Conv2d
from robustpatch.networks.one_pass import OnePass, complemented, wrapped


class ConvBlockNet(OnePass):
    """Logits of every block in one pass; the receptive field of block n is exactly block n.

    The image is continued around its border, as in `BlockNet`. Convolutions without padding, 3×3 but for the last,
    which is as large as what they leave of a block, take it to one position; blocks that overlap share what the layers
    find. The layers after these look at one block only. The number of the block enters as a learned embedding.

    Args:
        ablation: `Blocks` with stride 1, the only one it can be used with.
        widths: channels of the convolutions; all but the last take two pixels from each side of the block.
        hidden: units of the layer between the last of them and the logits.
    """

    ablation: Blocks
    kinds = (Blocks,)
    sees = "a convolutional block network sees blocks with stride 1"

    def __init__(
        self,
        ablation: Ablation,
        *,
        image_size: tuple[int, int] = (32, 32),
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 128, 128, 256, 256, 384),
        hidden: int = 384,
    ) -> None:
        super().__init__(ablation, image_size, in_channels)
        left = [side - 2 * (len(widths) - 1) for side in (self.ablation.height, self.ablation.width)]
        if len(widths) < 1 or min(left) < 1:
            raise InvalidInput(
                f"widths is {widths}; give one or more, all but the last take two pixels from {ablation}"
            )
        self._axes = self.ablation.axes(*image_size)
        pairs = list(pairwise((2 * in_channels, *widths)))
        sizes = [(3, 3)] * (len(widths) - 1) + [(left[0], left[1])]
        self.convolutions = nn.ModuleList(
            Conv2d(before, after, size, bias=False) for (before, after), size in zip(pairs, sizes, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in (*widths, hidden))
        self.embedding = nn.Parameter(torch.randn(self.ablation.count(*image_size), widths[-1]) * 0.1)
        self.hidden = nn.Conv2d(widths[-1], hidden, 1, bias=False)
        self.head = nn.Linear(hidden, num_classes)

    @classmethod
    def can_see(cls, ablation: Ablation | SparseAblation | None) -> bool:
        return isinstance(ablation, Blocks) and ablation.stride == 1

    def score_every(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N K"]:
        rows, columns = self._axes
        image = wrapped(wrapped(x, rows, dim=2), columns, dim=3)
        return self._score(image, self.embedding.T.unflatten(1, (rows.count, columns.count))[None])

    def score_some(self, x: Float[Tensor, "B C H W"], index: Int[Tensor, "B n"]) -> Float[Tensor, "B n K"]:
        cut = blocks(x, index, *self._axes).flatten(0, 1)
        return self._score(cut, self.embedding[index].flatten(0, 1)[..., None, None]).unflatten(0, index.shape)[:, :, 0]

    def _score(self, x: Tensor, embedding: Tensor) -> Float[Tensor, "M n K"]:
        x = complemented(x)
        *before, last = self.convolutions
        for convolution, norm in zip(before, self.norms, strict=False):
            x = norm(convolution(x)).relu()
        x = self.norms[-2](last(x) + embedding).relu()
        x = self.norms[-1](self.hidden(x)).relu()
        return self.head(x.flatten(2).transpose(1, 2))
