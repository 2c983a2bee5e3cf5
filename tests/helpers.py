"""Helpers that tests of several packages share: small sets of images, the interruption of a run, and its resumption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from robustpatch.data.image_set import ImageSet
from robustpatch.data.images import load_images
from robustpatch.training.loop import train


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


def alone_and_resumed(config, images: ImageSet, output: Path) -> tuple[Any, Any]:
    """The networks of a training in output/alone and of one in output/stopped that was interrupted in its second epoch
    and resumed: bitwise the same.
    """
    alone = train(config, images, images, output / "alone")

    def stop(epoch: int, step: int, loss: float) -> None:
        if (epoch, step) == (1, 1):
            raise Interrupted

    with pytest.raises(Interrupted):
        train(config, images, images, output / "stopped", on_step=stop)
    assert len(json.loads((output / "stopped" / "history.json").read_text())) == 1
    rows: list = []
    resumed = train(config, images, images, output / "stopped", resume=True, on_epoch=rows.append)
    assert [row["epoch"] for row in rows] == [2]
    for name, weights in alone.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weights), name
    return alone, resumed


def noise() -> ImageSet:
    """Sixteen images of 8×8 pixels of noise, in two classes."""
    pixels = torch.randint(0, 256, (16, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageSet("toy", "train", ("a", "b"), (1, 8, 8), torch.arange(16) % 2, _bytes=pixels)
