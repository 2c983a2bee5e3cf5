"""Threats by size: for n = 1, 2, … the square, the disc or the scaled mask that is n pixels long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput, check_whole
from robustpatch.threats.base import Threat
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.threats.stamp import Disc, Mask

Growing = Callable[[int], Threat]  # any function from a size to a threat


def squares(side: int) -> PatchThreat:
    """The square of that side. Each one holds all smaller ones."""
    return PatchThreat(side, side)


def discs(diameter: int) -> Disc:
    """The disc of that diameter. A larger need not hold a smaller: disc:3 is a square, and disc:4 has no corners."""
    return Disc(diameter)


@dataclass(frozen=True)
class Scaled:
    """The mask scaled to n pixels along its longer side, the other side rounded: the pixels that it covers in part.

    At its own size the mask is itself, at twice that size each pixel is four. A larger one need not hold a smaller.
    """

    mask: Mask

    def __call__(self, size: int) -> Mask:
        check_whole("mask size", size)
        pattern = self.mask.pattern.float()
        longer = max(pattern.shape)
        tall, wide = (max(1, (2 * side * size + longer) // (2 * longer)) for side in pattern.shape)
        return Mask.of(_shared(tall, pattern.shape[0]) @ pattern @ _shared(wide, pattern.shape[1]).T > 0)


def _shared(new: int, old: int) -> Float[Tensor, "new old"]:
    """1 where one of `new` equal parts of a line shares some of its length with one of `old` parts."""
    first, second = torch.arange(new)[:, None] * old, torch.arange(old) * new
    return ((first < second + new) & (second < first + old)).float()


def growing_text(text: str) -> str:
    """The same family as a text that names no file: "square", "disc" or "mask:HxW/BASE64". Raises `InvalidInput`."""
    found = parse_growing(text)
    return f"mask:{found.mask.pixels}" if isinstance(found, Scaled) else text.strip().lower()


def parse_growing(text: str) -> Growing:
    """Read "square", "disc" or a mask as `parse_threat` does ("mask:FILE"). Raises `InvalidInput`."""
    known: dict[str, Growing] = {"square": squares, "disc": discs}
    if text.strip().lower() in known:
        return known[text.strip().lower()]
    mask = Mask.read(text.strip())
    if mask is None:
        raise InvalidInput(f"threats by size are {one_line(text, 80)!r}; name square, disc or mask:FILE")
    return Scaled(mask)
