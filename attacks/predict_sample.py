"""A sample of the patches tried, to be shown to a `predict` that is more than the largest score.

Of such a classifier (`Classifier.predicts_apart`) a filter, an alert or a rule behind the scores may answer otherwise
under a patch that moves no score.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SHARE = 8
MOST = 10_000


class PredictSample:
    """Chooses about one in `SHARE` of the patches tried on each of B images, by a hash of what they are, where, and how
    often they were tried before: which ones depends neither on the images beside them nor on the order. (Only of the
    first `MOST` distinct patches of an image it is counted how often.)
    """

    def __init__(self, images: int) -> None:
        self._tried: list[dict[int, int]] = [{} for _ in range(images)]

    def chosen(
        self, image: Int[Tensor, " P"], content: Float[Tensor, "P count C h w"], corners: Int[Tensor, "P count 2"]
    ) -> Bool[Tensor, " P"]:
        """Choose among the attacked images, by what their patches show at these corners."""
        content = content.float().contiguous().flatten(1)
        words = torch.cat([content.view(torch.int32).long(), corners.flatten(1).long()], dim=1)
        place = torch.arange(words.shape[1], device=words.device)
        key = _mixed(words + (place << 32)).sum(dim=1)
        before = [self._count(i, one) for i, one in zip(image.tolist(), key.tolist(), strict=True)]
        return _mixed(key + torch.tensor(before, dtype=torch.long, device=key.device)) % SHARE == 0

    def _count(self, image: int, key: int) -> int:
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
