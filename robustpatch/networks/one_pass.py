"""The base class of networks that score all ablations of an image in one pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.sparse import SparseAblation
from robustpatch.ablations.touched import Axis
from robustpatch.errors import InvalidInput


class OnePass(nn.Module, ABC):
    """Logits [B,n,K] of the ablations of raw images [B,C,H,W]; those of ablation n depend on its kept pixels alone.

    Every pixel of a band or block is kept, so that NULL never occurs in one and needs no code. The networks of this
    package normalise by per-channel batch norm alone: in evaluation mode it is a fixed affine map, and mixes neither
    ablations nor images. (A layer or group norm over the feature map would let one band see another.) Their arguments
    `image_size` (height, width), `num_classes` K and `in_channels` C are the images'.

    A subclass writes `score_some`, and `score_every` where all ablations together cost less than one by one. The
    classes of ablations that it can see are its `kinds`. Raises `InvalidInput` for any other ablation, and for images
    of another shape than it was built for: its embeddings are of places in the image.
    """

    kinds: ClassVar[tuple[type[Ablation], ...]]
    sees: ClassVar[str]
    """The kinds in words, for messages: "a block network sees blocks"."""

    scores_apart: ClassVar[bool] = False
    """True where images that ask for different ablations cost no more than those that ask for the same."""

    def __init__(self, ablation: Ablation, image_size: tuple[int, int], in_channels: int) -> None:
        super().__init__()
        if not self.can_see(ablation):
            raise InvalidInput(f"ablation is {ablation}; {self.sees}")
        self.ablation, self.image_size, self.in_channels = ablation, image_size, in_channels

    @classmethod
    def can_see(cls, ablation: Ablation | SparseAblation | None) -> bool:
        """True where networks of this class can be built for the ablation."""
        return isinstance(ablation, cls.kinds)

    def score_all(self, x: Float[Tensor, "B C H W"], index: Int[Tensor, "..."] | None = None) -> Float[Tensor, "B n K"]:
        """Logits of all ablations, or of those in `index`, [n] for every image alike or [B,n], at the cost of those."""
        self._check_images(x)
        if index is None:
            return self.score_every(x)
        return self.score_some(x, index.expand(len(x), -1) if index.ndim == 1 else index)

    @abstractmethod
    def score_some(self, x: Float[Tensor, "B C H W"], index: Int[Tensor, "B n"]) -> Float[Tensor, "B n K"]:
        """Logits of the ablations in `index` of each image, of which no other pixel is read."""

    def score_every(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N K"]:
        """Logits of all N ablations."""
        n = self.ablation.count(*self.image_size)
        return self.score_some(x, torch.arange(n, device=x.device).expand(len(x), -1))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N K"]:
        """The same as `score_all`."""
        return self.score_all(x)

    def _check_images(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != (self.in_channels, *self.image_size):
            raise InvalidInput(
                f"images have shape {tuple(x.shape)}; this network was built for {self.in_channels} channels of "
                f"{self.image_size[0]}x{self.image_size[1]} pixels: resize the images, or build it for theirs"
            )


def wrapped(x: Float[Tensor, "B C H W"], axis: Axis, dim: int) -> Float[Tensor, "B C Y X"]:
    """The image continued past its border by the first pixels, so that every window of the axis is unbroken."""
    return torch.cat([x, x.narrow(dim, 0, axis.size - 1)], dim=dim)


def complemented(x: Float[Tensor, "M C H W"]) -> Float[Tensor, "M channels H W"]:
    """x and 1 - x as channels, in the memory layout of fast convolutions."""
    return torch.cat([x, 1 - x], dim=1).contiguous(memory_format=torch.channels_last)
