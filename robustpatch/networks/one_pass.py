"""What the networks that score all ablations in one pass have in common."""

from __future__ import annotations

from torch import Tensor

from robustpatch.errors import InvalidInput


def check_shape(x: Tensor, in_channels: int, image_size: tuple[int, int]) -> None:
    """Refuse images of another size than the network was built for: its embeddings are of places in the image."""
    if tuple(x.shape[1:]) != (in_channels, *image_size):
        raise InvalidInput(
            f"images have shape {tuple(x.shape)}; this network was built for {in_channels} channels of "
            f"{image_size[0]}x{image_size[1]} pixels: resize the images, or build it for theirs"
        )
