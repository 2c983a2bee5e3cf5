"""Detection by masked tokens: ViP (Li et al. 2022) and PatchCensor (Huang et al. 2023) have the same rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evaluate.court.entry import Entry, claim, one_patch, sizes
from evaluate.court.views import Base, ask, crossed, spans


class TokenMasks:
    """The image in tokens of `token` × `token` pixels; every square of `wide` × `wide` tokens is masked in turn. An
    alert where one of these views, or the whole image, is of another class; certified where all agree.

    A patch of up to (wide - 1)·token + 1 pixels lies within such a square wherever it is.
    """

    token = wide = 2

    def __init__(self, base: Base, num_classes: int) -> None:
        self.base, self.num_classes = base, num_classes

    def classes(self, x: Tensor) -> Tensor:
        """[B,1+M]: of the whole image, and under each mask."""
        if any(length % self.token or length < self.token * self.wide for length in x.shape[2:]):
            raise ValueError(f"{tuple(x.shape[2:])} pixels are no whole tokens of {self.token}, or fewer than a mask")
        size = self.token * self.wide
        hidden = crossed(*(spans(length, size, step=self.token) for length in x.shape[2:]))
        return ask(self.base, x, torch.cat([torch.ones_like(hidden[:1]), ~hidden])).argmax(dim=2)

    def predict(self, x: Tensor) -> Tensor:
        said = self.classes(x)
        return torch.where((said == said[:, :1]).all(dim=1), said[:, 0], -1)

    def certify(self, x: Tensor, threat: Any) -> Any:
        said = self.classes(x)
        fits = max(one_patch(threat)) <= (self.wide - 1) * self.token + 1
        return claim(said[:, 0], (said == said[:, :1]).all(dim=1) & fits)


def printed(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> TokenMasks:
    return TokenMasks(base, num_classes)


ENTRY = Entry(
    module="token_masks",
    title="Masked tokens: ViP's detection (Li et al. 2022), PatchCensor (Huang et al. 2023)",
    claim="Under every patch of that size the answer is the clean prediction or an alert.",
    read="code: UCSC-VLAA/vit_cert, engine.py and util/mask.py; YuhengHuang42/PatchCensor, test_verified.py and "
    "utils.py; abstracts",
    unknown="Which number of tokens belongs to the tables' 2% (32 pixels need three of 16). ViP's two patches were "
    "not tried. What both publish counts no false alerts.",
    adapted="Tokens of 2×2 pixels, masks of 2×2 tokens; images that are no whole tokens are refused, as a ViT would.",
    printed=printed,
    alerts=True,
    sizes=sizes("1x4x4/1x1", "1x4x6/3x3"),
)
