"""Random crops and flips of training images, the same for the same generator."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def augmented(x: Float[Tensor, "B C H W"], crop: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Each image moved by up to `crop` pixels in either direction, black where it leaves, and, with `flip`, mirrored
    left to right or not: values are moved, never mixed. Chance is the `generator`'s alone; torch's own is left as it
    was, and with neither option nothing is drawn.
    """
    if not crop and not flip:
        return x
    import kornia.augmentation as kornia  # slow to import, and only training needs it

    steps: list[torch.nn.Module] = []
    if crop:
        size = (x.shape[2], x.shape[3])
        steps.append(kornia.RandomCrop(size, padding=crop, cropping_mode="slice"))
    if flip:
        steps.append(kornia.RandomHorizontalFlip())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        for step in steps:
            x = step(x)
    return x
