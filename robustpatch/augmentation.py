"""Random crops, zooms and flips of training images, the same for the same generator."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def augmented(
    x: Float[Tensor, "B C H W"], crop: int, flip: bool, generator: torch.Generator, zoom: float = 1.0
) -> Tensor:
    """Each image moved by up to `crop` pixels in either direction, black where it leaves, and, with `flip`, mirrored
    left to right or not: values are moved, never mixed. With a `zoom` below 1, before that, a rectangle of the image is
    scaled up to its size: a share of its area between `zoom` and 1, of sides as 3:4 to 4:3 (Szegedy et al. 2015, with
    0.08). Chance is the `generator`'s alone; torch's own is left as it was, and with no option nothing is drawn.
    """
    if not crop and not flip and zoom == 1:
        return x
    import kornia.augmentation as kornia  # slow to import, and only training needs it

    steps: list[torch.nn.Module] = []
    size = (x.shape[2], x.shape[3])
    if zoom < 1:
        steps.append(kornia.RandomResizedCrop(size, scale=(zoom, 1.0), cropping_mode="resample"))
    if crop:
        steps.append(kornia.RandomCrop(size, padding=crop, cropping_mode="slice"))
    if flip:
        steps.append(kornia.RandomHorizontalFlip())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        for step in steps:
            x = step(x)
    return x
