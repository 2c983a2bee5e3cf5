"""Preprocessing: what is done to an image before a network sees it, read from a model's configuration or given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustpatch.data.framing import Framing
from robustpatch.errors import InvalidInput
from robustpatch.networks.widen import Normalized


@dataclass(frozen=True)
class Preprocessing:
    """Images in [0, 1] are brought to `size` where they have another, normalised, and shown in so many channels.

    Attributes:
        size: height and width that the network sees; None: whatever the images have.
        mean, std: by which each channel is normalised; empty: not at all.
        scaled, interpolation: how pictures of any size become such images (see `Framing`).
        channels: that the network reads, where that is known: a grey image is shown in each.
        source: where all this was read, in words.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    scaled: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"
    channels: int | None = None
    source: str = "the model says nothing of it"

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(value > 0 for value in self.std):
            raise InvalidInput(
                f"mean is {_listed(self.mean) or None} and std {_listed(self.std) or None}; give as many of each, "
                "std above 0"
            )
        if self.channels is not None and len(self.mean) > 1 and len(self.mean) != self.channels:
            raise InvalidInput(
                f"mean has {len(self.mean)} values, but the network reads {self.channels} channels; give "
                f"{self.channels}"
            )

    @property
    def framing(self) -> Framing | None:
        """The way from pictures of any size to images of `size`."""
        return None if self.size is None else Framing(self.size, self.scaled, self.interpolation)

    def __str__(self) -> str:
        seen = "seen in their own size" if self.size is None else f"seen as {self.size[0]}×{self.size[1]}"
        by = f"mean {_listed(self.mean)}, std {_listed(self.std)}" if self.mean else "values in [0, 1] as they are"
        return f"{seen}, {by} ({self.source})"


class Prepared(nn.Module):
    """A network of whole images after its preprocessing; where that changes nothing, the network's own answer.

    What lies before the network is part of the classifier: a defense around it hides pixels of the image as given, and
    a gradient leads through.
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network, self.size, self.interpolation = network, preprocessing.size, preprocessing.interpolation
        mean, std = preprocessing.mean, preprocessing.std
        self.channels = preprocessing.channels if len(mean) <= 1 else None
        self.normalized = Normalized(mean, std) if mean else nn.Identity()

    def forward(self, x: Float[Tensor, "B C H W"]) -> Tensor:
        if self.size is not None and tuple(x.shape[2:]) != self.size:
            smooth = {} if self.interpolation == "nearest" else {"antialias": True, "align_corners": False}
            scaled = nn.functional.interpolate(x, self.size, mode=self.interpolation, **smooth)
            x = scaled.clamp(0, 1) if self.interpolation == "bicubic" else scaled
        if self.channels is not None and x.shape[1] == 1:
            x = x.expand(-1, self.channels, -1, -1)
        return self.network(self.normalized(x))


class InBatches(nn.Module):
    """A network that takes `batch` images at once, no more and no fewer: the last ones are filled up with copies."""

    def __init__(self, network: nn.Module, batch: int) -> None:
        super().__init__()
        self.network, self.batch = network, batch

    def forward(self, x: Float[Tensor, "B C H W"]) -> Tensor:
        found = []
        for some in x.split(self.batch):
            filled = torch.cat([some, some[:1].expand(self.batch - len(some), -1, -1, -1)])
            found.append(self.network(filled)[: len(some)])
        return torch.cat(found)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
