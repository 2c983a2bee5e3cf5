"""The base class of one-pass networks of bands: columns, or rows, which are the columns of the transposed image."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.kinds import Band, Columns, Rows
from robustpatch.networks.one_pass import OnePass


class BandsNet(OnePass):
    """A one-pass network of `Columns` or `Rows`. A band is seen as columns: for rows, the image is transposed.

    `axis` are the bands along the image, `length` is the number of pixels along a band.
    """

    ablation: Band
    kinds = (Columns, Rows)
    sees = "a strip network sees columns or rows"

    def __init__(self, ablation: Ablation, image_size: tuple[int, int], in_channels: int) -> None:
        super().__init__(ablation, image_size, in_channels)
        across = self.ablation.across
        self.axis, self.length = self.ablation.axes(*image_size)[across], image_size[1 - across]

    def upright(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C length X"]:
        """The image whose columns are the bands' lines."""
        return x if self.ablation.across == 1 else x.transpose(2, 3)

    def pixels(self, index: Int[Tensor, "B n"], within: Int[Tensor, "..."] | None = None) -> Int[Tensor, "B n ..."]:
        """The lines of each band, or those at the places `within` it; past the border, the first ones again."""
        within = torch.arange(self.axis.size, device=index.device) if within is None else within
        return (index.reshape(*index.shape, *[1] * within.ndim) * self.axis.stride + within) % self.axis.length

    def side_by_side(self, x: Float[Tensor, "B C length X"], pixel: Int[Tensor, "B ..."]) -> Tensor:
        """The lines `pixel` of an upright image, one beside the other: [B,C,length,number of them]."""
        return x.gather(3, pixel.flatten(1)[:, None, None].expand(-1, x.shape[1], x.shape[2], -1))
