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


def noise() -> ImageSet:
    """Sixteen images of 8×8 pixels of noise, in two classes."""
    pixels = torch.randint(0, 256, (16, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageSet("toy", "train", ("a", "b"), (1, 8, 8), torch.arange(16) % 2, _bytes=pixels)
