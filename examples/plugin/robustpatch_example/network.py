"""--network linear: the least that can be trained, on images as they are or as an encoding shows them."""

from torch import nn


class Linear(nn.Sequential):
    """Logits of all pixels at once. `image_size`, `num_classes` and `in_channels` are given; others are options."""

    def __init__(self, *, image_size: tuple[int, int], num_classes: int, in_channels: int, hidden: int = 32):
        pixels = in_channels * image_size[0] * image_size[1]
        layers = nn.Flatten(), nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
        super().__init__(*layers)
