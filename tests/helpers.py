"""Helpers that tests of several packages share: small sets of images, and the interruption of a run."""

from __future__ import annotations

import torch

from robustpatch.data.image_set import ImageSet
from robustpatch.data.images import load_images


class Interrupted(Exception):
    """Thrown from a progress callback, as a killed process would stop."""


def half_digits(count: int) -> ImageSet:
    """The first `count` images of the sample, at half their size: 14×14 pixels, ten classes."""
    x, y = load_images("mnist-sample").batch(range(count))
    small = (torch.nn.functional.avg_pool2d(x, 2) * 255).round().to(torch.uint8)
    return ImageSet("half", "train", tuple("0123456789"), (1, 14, 14), y, _bytes=small)


def digits(count: int, window: slice = slice(None)) -> ImageSet:
    """The first `count` images of the sample, or the pixels of those in a window of rows and columns; ten classes."""
    x, y = load_images("mnist-sample").batch(range(count))
    pixels = (x[..., window, window] * 255).round().to(torch.uint8)
    return ImageSet("some", "train", tuple("0123456789"), (1, *pixels.shape[2:]), y, _bytes=pixels)


def interrupt(*_: object) -> None:
    """A callback that interrupts what calls it."""
    raise Interrupted


def noise() -> ImageSet:
    """Sixteen images of 8×8 pixels of noise, in two classes."""
    pixels = torch.randint(0, 256, (16, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageSet("toy", "train", ("a", "b"), (1, 8, 8), torch.arange(16) % 2, _bytes=pixels)
