"""The paper's base classifier for MNIST."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from robustpatch.errors import InvalidInput


class MnistCNN(nn.Sequential):
    """conv(4×4, stride 2, 64), conv(4×4, stride 2, 128), fully connected 500, 100, K, on encoded 28×28 images.

    It sees one ablated image at a time: the NULL pattern of the encoding tells it which. 3.3 million parameters.
    (Levine & Feizi 2020, Appendix D, after Chiang et al. 2020.)
    """

    def __init__(self, *, image_size: tuple[int, int] = (28, 28), num_classes: int = 10, in_channels: int = 2) -> None:
        if image_size != (28, 28):
            raise InvalidInput(
                f"network mnist-cnn takes 28x28 images, not {image_size[0]}x{image_size[1]}; choose another network"
            )
        super().__init__(
            nn.Conv2d(in_channels, 64, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 128, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128 * 7 * 7, 500),
            nn.ReLU(),
            nn.Linear(500, 100),
            nn.ReLU(),
            nn.Linear(100, num_classes),
        )

    def forward(self, input: Float[Tensor, "M E 28 28"]) -> Float[Tensor, "M K"]:
        return super().forward(input)
