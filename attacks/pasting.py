"""Patches into images, and out of them."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def paste(
    x: Float[Tensor, "P C H W"], corners: Int[Tensor, "P count 2"], patch: Float[Tensor, "P count C h w"]
) -> Float[Tensor, "P C H W"]:
    """Copies of the images with each one's patches at its corners (row, column); where two overlap, the last shows."""
    out = x.clone()
    image = torch.arange(len(x), device=x.device)[:, None, None]
    for k in range(corners.shape[1]):
        row = corners[:, k, 0, None] + torch.arange(patch.shape[3], device=x.device)
        column = corners[:, k, 1, None] + torch.arange(patch.shape[4], device=x.device)
        out[image, :, row[:, :, None], column[:, None, :]] = patch[:, k].permute(0, 2, 3, 1).to(x.dtype)
    return out


def crop(
    x: Float[Tensor, "P C H W"], corners: Int[Tensor, "P count 2"], size: tuple[int, int]
) -> Float[Tensor, "P count C h w"]:
    """Cut out what the images show at these corners: the inverse of `paste`."""
    image = torch.arange(len(x), device=x.device)[:, None, None, None]
    row = corners[..., 0, None] + torch.arange(size[0], device=x.device)
    column = corners[..., 1, None] + torch.arange(size[1], device=x.device)
    return x[image, :, row[..., :, None], column[..., None, :]].permute(0, 1, 4, 2, 3)
