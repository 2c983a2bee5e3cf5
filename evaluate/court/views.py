"""Views that certifiers show to their base, and the counting of its answers.

A view is the image with the pixels that are not kept set to 0, and a channel that says which are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Base = Callable[[Any], Any]


def ask(base: Base, x: Tensor, kept: Tensor) -> Tensor:
    """The base's logits [B,N,K] of the views of images [B,C,H,W] that keep what masks [N,H,W] say."""
    shown = torch.where(kept[:, None, None], x, 0.0)
    told = kept[:, None, None].to(x.dtype).expand(len(kept), len(x), 1, *x.shape[2:])
    views = torch.cat([shown, told], dim=2).flatten(0, 1)
    return base(views).unflatten(0, (len(kept), len(x))).transpose(0, 1)


def bands(length: int, size: int, stride: int = 1) -> Tensor:
    """Which of `length` columns each band keeps [N,length]: `size` from n·stride on, around the border."""
    starts = torch.arange(0, length, stride)[:, None]
    return (torch.arange(length) - starts) % length < size


def columns(x: Tensor, size: int, stride: int = 1) -> Tensor:
    """The masks [N,H,W] of bands of columns."""
    return bands(x.shape[3], size, stride)[:, None].expand(-1, x.shape[2], -1)


def rectangles(shape: Sequence[int], tall: int, wide: int) -> Tensor:
    """The masks [N,H,W] of all rectangles of that size inside an image of that height and width, row by row."""
    return crossed(spans(shape[0], tall), spans(shape[1], wide))


def spans(length: int, size: int, first: int = 0, last: int | None = None, step: int = 1) -> Tensor:
    """Runs of `size` of `length` places [N,length], which begin at `first` to `last`; what lies outside is cut off."""
    starts = torch.arange(first, (length - size if last is None else last) + 1, step)[:, None]
    at = torch.arange(length)
    return (at >= starts) & (at < starts + size)


def crossed(down: Tensor, across: Tensor) -> Tensor:
    """The rectangles [N,H,W] of every run down [n,H] with every run across [m,W]."""
    return (down[:, None, :, None] & across[None, :, None, :]).flatten(0, 1)


def cleanser_spans(length: int, patch: int, number: int) -> Tensor:
    """PatchCleanser's runs [N,length] along an axis: each `patch` neighbours lie in one of them, the last flush with
    the border.
    """
    patch = min(patch, length)
    step = -(-(length - patch + 1) // number)
    size = min(patch + step - 1, length)
    starts = list(range(0, length - size + 1, step))
    if starts[-1] != length - size:
        starts.append(length - size)
    return torch.cat([spans(length, size, start, start) for start in starts])


def counted(scores: Tensor) -> Tensor:
    """Counts of the votes for the first largest of logits [B,N,K]: [B,K]."""
    return F.one_hot(scores.argmax(dim=2), scores.shape[2]).sum(dim=1)


def last_argmax(values: Tensor) -> Tensor:
    """The highest of the classes with the largest value, as a stable sort in ascending order has it at its end."""
    best = values == values.amax(dim=1, keepdim=True)
    return values.shape[1] - 1 - best.flip(1).int().argmax(dim=1)


def beats_all(own: Tensor, others: Tensor, prediction: Tensor, lower_wins: bool = True) -> Tensor:
    """Tells whether `own` [B] beats every other class in `others` [B,K]; at a tie the lower one wins, or the higher."""
    number, own = torch.arange(others.shape[1]), own[:, None]
    ties = number > prediction[:, None] if lower_wins else number < prediction[:, None]
    return ((own > others) | ((own == others) & ties) | (number == prediction[:, None])).all(dim=1)


def of_class(values: Tensor, classes: Tensor) -> Tensor:
    """The entries [B] of values [B,K] for one class each."""
    return values.gather(1, classes[:, None])[:, 0]
