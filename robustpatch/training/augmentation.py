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
    if zoom < 1:
        x = _zoomed(x, zoom, generator)
    n, height, width = len(x), x.shape[2], x.shape[3]
    if crop:
        around = torch.nn.functional.pad(x, (crop,) * 4)
        windows = around.unfold(2, height, 1).unfold(3, width, 1)  # a view: [B,C,2·crop+1,2·crop+1,H,W]
        down, right = torch.randint(2 * crop + 1, (2, n), generator=generator).to(x.device)
        x = windows[torch.arange(n, device=x.device), :, down, right]
    if flip:
        mirrored = torch.rand(n, generator=generator) < 0.5
        x = torch.where(mirrored.to(x.device)[:, None, None, None], x.flip(3), x)
    return x


def _zoomed(x: Tensor, zoom: float, generator: torch.Generator) -> Tensor:
    import kornia.augmentation as kornia  # slow to import, and only training needs it

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return kornia.RandomResizedCrop((x.shape[2], x.shape[3]), scale=(zoom, 1.0), cropping_mode="resample")(x)
