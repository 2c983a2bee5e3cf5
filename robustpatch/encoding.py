"""Kept pixels -> network input: how NULL ("this pixel is hidden") is told from every colour."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustpatch.errors import InvalidInput


class Encoding(ABC):
    """Turns an image and the mask of its kept pixels into what a base classifier sees.

    Hidden pixels are selected away, never multiplied away: 0 · NaN is NaN and would carry a patch into ablations that
    do not contain it.
    """

    name: str

    @abstractmethod
    def channels(self, image_channels: int) -> int:
        """Input channels of the base classifier."""

    @abstractmethod
    def __call__(self, x: Float[Tensor, "M C H W"], kept: Bool[Tensor, "M H W"]) -> Float[Tensor, "M E H W"]:
        """The encoded ablated images; image m is ablated by mask m."""


@dataclass(frozen=True)
class ComplementChannels(Encoding):
    """A kept pixel x becomes (x, 1 - x), a hidden one (0, 0): 2C channels (Levine & Feizi 2020, Section 3.1)."""

    name = "complement"

    def channels(self, image_channels: int) -> int:
        return 2 * image_channels

    def __call__(self, x: Float[Tensor, "M C H W"], kept: Bool[Tensor, "M H W"]) -> Float[Tensor, "M E H W"]:
        return torch.where(kept[:, None], torch.cat([x, 1 - x], dim=1), 0)


@dataclass(frozen=True)
class MaskChannel(Encoding):
    """Hidden pixels are 0 and one more channel says which pixels are kept: C + 1 channels."""

    name = "mask"

    def channels(self, image_channels: int) -> int:
        return image_channels + 1

    def __call__(self, x: Float[Tensor, "M C H W"], kept: Bool[Tensor, "M H W"]) -> Float[Tensor, "M E H W"]:
        return torch.cat([torch.where(kept[:, None], x, 0), kept[:, None].to(x.dtype)], dim=1)


@dataclass(frozen=True)
class Fill(Encoding):
    """A hidden pixel shows `value` in every channel: what any classifier of images can be shown."""

    value: float
    name = "fill"

    def channels(self, image_channels: int) -> int:
        return image_channels

    def __call__(self, x: Float[Tensor, "M C H W"], kept: Bool[Tensor, "M H W"]) -> Float[Tensor, "M C H W"]:
        return torch.where(kept[:, None], x, self.value)


def encoding_named(name: str) -> Encoding:
    """The encoding of that `name`, as checkpoints store it. Raises `InvalidInput`."""
    known = {encoding.name: encoding for encoding in (ComplementChannels(), MaskChannel())}
    if name not in known:
        raise InvalidInput(f"encoding is {name!r}; known are {', '.join(known)}")
    return known[name]
