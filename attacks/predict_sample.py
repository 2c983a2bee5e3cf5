"""Which patches are shown to a `predict` that is more than the largest score (`Classifier.predicts_apart`).

A filter, an alert or a rule behind the scores may answer otherwise under a patch that moves no score.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attacks.pasting import crop

SHARE = 8  # about one patch in so many is shown to `predict` whatever its scores are
MOST = 10_000


class Shares:
    """Chooses about one in `SHARE` of the patches tried on each of B images, by what they are, where, and how often
    they were tried before: so which ones depends neither on the images beside them nor on the order. (Of the patches
    after the first `MOST` distinct ones of an image, nobody knows how often.)
    """

    def __init__(self, images: int) -> None:
        self._tried: list[dict[int, int]] = [{} for _ in range(images)]

    def chosen(
        self,
        image: Int[Tensor, " P"],
        x_adv: Float[Tensor, "P C H W"],
        corners: Int[Tensor, "P count 2"],
        size: tuple[int, int],
    ) -> Bool[Tensor, " P"]:
        """Which of the attacked images, patched at these corners with patches of that size."""
        content = crop(x_adv, corners, size).float().contiguous().flatten(1).view(torch.int32).long()
        told = torch.cat([content, corners.flatten(1).long()], dim=1)
        place = torch.arange(told.shape[1], device=told.device)
        key = _mixed(told + (place << 32)).sum(dim=1)
        before = [self._count(i, one) for i, one in zip(image.tolist(), key.tolist(), strict=True)]
        return _mixed(key + torch.tensor(before, dtype=torch.long, device=key.device)) % SHARE == 0

    def _count(self, image: int, key: int) -> int:
        """How often this one was tried before."""
        tried = self._tried[image]
        before = tried.get(key, 0)
        if before or len(tried) < MOST:
            tried[key] = before + 1
        return before


def _mixed(number: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """A hash of each int64 (the finaliser of MurmurHash3; products wrap around)."""
    for factor in (-0x00AE502812AA7333, -0x3B314601E57A13AD):
        number = (number ^ ((number >> 33) & 0x7FFFFFFF)) * factor
    return number ^ ((number >> 33) & 0x7FFFFFFF)
