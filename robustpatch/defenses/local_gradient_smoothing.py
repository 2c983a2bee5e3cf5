"""Local gradient smoothing: darken what is busy, for a patch is. No certificate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from kornia.filters import sobel
from torch import Tensor, nn

from robustpatch.defenses.base import Defense
from robustpatch.defenses.filtered import Filtered, check_options, gradient_option, precise


@dataclass(frozen=True)
class LocalGradientSmoothing(Defense):
    """Each pixel is multiplied by 1 - clip(factor · g, 0, 1), g the local gradient where that is dense, else 0.

    The magnitude of the grey image's gradient (Sobel) is brought to [0, 1] image by image: least 0, largest 1; all 0
    where it is the same everywhere. Square windows of side `window`, each overlapping the next by `overlap`, cover the
    image, the last of a row or column flush with the border. g is that magnitude in windows whose mean exceeds
    `threshold`, and 0 outside of all of them. A window larger than the image is cut to it.

    `gradient`: what an attack's gradient is; see `Filtered`. The defaults are the paper's, for 224×224 and 299×299;
    MNIST's digits ask for smaller windows. Naseer et al. 2018, Local Gradients Smoothing, Sections 3.1 and 4.
    """

    name: ClassVar[str] = "lgs"
    window: int = 15
    overlap: int = 5
    threshold: float = 0.1
    factor: float = 2.3
    gradient: str = "through"

    def __post_init__(self) -> None:
        check_options(
            self,
            window=(self.window >= 1, "at least 1"),
            overlap=(0 <= self.overlap < self.window, f"at least 0 and less than the window, {self.window}"),
            threshold=(0 <= self.threshold <= 1, "in [0, 1]"),
            factor=(0 <= self.factor < float("inf"), "at least 0"),
            gradient=gradient_option(self.gradient),
        )

    def wrap(self, network: nn.Module, *, num_classes: int) -> LocallySmoothed:
        return LocallySmoothed(network, self, num_classes=num_classes)


class LocallySmoothed(Filtered):
    """The network's answer to the image with its dense local gradients suppressed; see `LocalGradientSmoothing`."""

    defense: LocalGradientSmoothing

    def clean(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        own = self.defense
        dense = normalized_gradient(precise(x))
        dense = dense * busy(dense.detach(), own.window, own.overlap, own.threshold)
        return (x * (1 - (own.factor * dense).clamp(0, 1))).to(x.dtype)


def normalized_gradient(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 H W"]:
    """The magnitude of the gradient of the channels' mean, from 0 to 1 within each image; 0 where it is constant."""
    magnitude = sobel(x.mean(dim=1, keepdim=True))
    least = magnitude.amin(dim=(2, 3), keepdim=True)
    extent = magnitude.amax(dim=(2, 3), keepdim=True) - least
    flat = extent < _FLAT
    return torch.where(flat, 0.0, (magnitude - least) / torch.where(flat, 1.0, extent))


_FLAT = 1e-5  # magnitudes of a constant image differ by 1e-9 in float32, one pixel brighter by 1/255 by 4e-4


def busy(gradient: Float[Tensor, "B 1 H W"], window: int, overlap: int, threshold: float) -> Float[Tensor, "B 1 H W"]:
    """1 in every window whose mean exceeds the threshold, 0 outside of all of them."""
    rows, columns = (windows_of_axis(length, window, overlap).to(gradient) for length in gradient.shape[2:])
    means = rows @ gradient @ columns.T / (rows[0].sum() * columns[0].sum())
    return (rows.T @ (means > threshold).to(gradient) @ columns > 0).to(gradient)


def windows_of_axis(length: int, window: int, overlap: int) -> Tensor:
    """[windows, length]: which positions of an axis each window covers."""
    size = min(window, length)
    first = torch.arange(0, length - size + window - overlap, window - overlap).clamp(max=length - size)[:, None]
    position = torch.arange(length)
    return (position >= first) & (position < first + size)
