"""Random crops, zooms, turns, flips and colours of training images, the same for the same generator."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def augmented(
    x: Float[Tensor, "B C H W"],
    generator: torch.Generator,
    *,
    zoom: float = 1.0,
    turn: float = 0.0,
    crop: int = 0,
    flip: bool = False,
    colour: float = 0.0,
) -> Tensor:
    """Changes images at random, each by itself; chance is the `generator`'s alone.

    In this order: `zoom` below 1 scales a rectangle of the image up to its size, a share of its area between `zoom` and
    1, of sides as 3:4 to 4:3 (Szegedy et al. 2015, with 0.08); `turn` rotates about the middle by up to so many degrees
    either way, black where the image ends; `crop` moves it by up to so many pixels in either direction, black where it
    leaves; `flip` mirrors it left to right or not; `colour` changes brightness, contrast and saturation by up to that
    share. Torch's own generator is left as it was, and with no option nothing is drawn.
    """
    n, height, width = len(x), x.shape[2], x.shape[3]
    if zoom < 1:
        x = _by_kornia(x, generator, "RandomResizedCrop", (height, width), scale=(zoom, 1.0), **_RESAMPLED)
    if turn:
        x = _by_kornia(x, generator, "RandomRotation", turn, p=1.0)
    if crop:
        around = torch.nn.functional.pad(x, (crop,) * 4)
        windows = around.unfold(2, height, 1).unfold(3, width, 1)  # a view: [B,C,2·crop+1,2·crop+1,H,W]
        down, right = torch.randint(2 * crop + 1, (2, n), generator=generator).to(x.device)
        x = windows[torch.arange(n, device=x.device), :, down, right]
    if flip:
        mirrored = torch.rand(n, generator=generator) < 0.5
        x = torch.where(mirrored.to(x.device)[:, None, None, None], x.flip(3), x)
    if colour:
        x = _coloured(x, colour, generator)
    return x


_RESAMPLED = {"cropping_mode": "resample"}


def _by_kornia(x: Tensor, generator: torch.Generator, kind: str, *arguments, **options) -> Tensor:
    import kornia.augmentation as kornia  # slow to import, and only training needs it

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return getattr(kornia, kind)(*arguments, **options)(x)


def _coloured(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Saturation about each pixel's grey, contrast about the image's mean, brightness about 0, each by a factor between
    1 - share and 1 + share; values stay in [0, 1].
    """
    factors = 1 + share * (2 * torch.rand(3, len(x), 1, 1, 1, generator=generator) - 1).to(x.device)
    grey = x.mean(1, keepdim=True)
    x = grey + factors[0] * (x - grey)
    mean = x.mean((1, 2, 3), keepdim=True)
    return (factors[2] * (mean + factors[1] * (x - mean))).clamp(0, 1)
