"""A fully connected network: for ablations that keep pixels without neighbours, which a convolution cannot relate."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from robustpatch.errors import InvalidInput


class MLP(nn.Module):
    """Logits of encoded (or whole) images through hidden layers of `widths` units, each normalised and rectified.

    Of an image that is nearly all NULL little reaches the first layer: batch normalisation scales it up. In evaluation
    mode that is a fixed affine map, and mixes no images. It computes in the precision of its weights. With the
    defaults, on encoded 28×28 images of one channel, 279,050 parameters.

    Args:
        image_size: (height, width). num_classes: K. in_channels: E, as encoded. widths: units of the hidden layers.
        norm: whether those are normalised, as networks of whole images need not be.
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int] = (28, 28),
        num_classes: int = 10,
        in_channels: int = 2,
        widths: Sequence[int] = (160, 160),
        norm: bool = True,
    ) -> None:
        super().__init__()
        if not all(width >= 1 for width in widths):
            raise InvalidInput(f"widths is {widths}, units of each hidden layer; give numbers of at least 1")
        units = (in_channels * image_size[0] * image_size[1], *widths)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(units):
            layers += [nn.Linear(inputs, outputs), *([nn.BatchNorm1d(outputs)] if norm else []), nn.ReLU()]
        self.features = nn.Sequential(nn.Flatten(), *layers)
        self.head = nn.Linear(units[-1], num_classes)

    def forward(self, x: Float[Tensor, "M E H W"]) -> Float[Tensor, "M K"]:
        return self.head(self.features(x.to(self.head.weight.dtype)))
