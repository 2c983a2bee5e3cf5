"""PatchCleanser (Xiang et al. 2022), double masking as published: a control, which has to hold."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evaluate.court.entry import Entry, claim, one_patch, sizes
from evaluate.court.views import Base, ask, cleanser_spans, crossed, last_argmax


class DoubleMasking:
    """Made for patches of up to `side` × `side`: `number` masks an axis, of which one hides any such patch.

    All views under one mask agree: that class. Else the first that disagrees with the majority and is confirmed by all
    its views under a second mask; else the majority. Certified where all views under two masks agree.
    """

    side, number = 2, 3

    def __init__(self, base: Base, num_classes: int) -> None:
        self.base, self.num_classes = base, num_classes

    def hidden(self, x: Tensor) -> Tensor:
        return crossed(*(cleanser_spans(length, self.side, self.number) for length in x.shape[2:]))

    def classes(self, x: Tensor) -> Tensor:
        """The class under each pair of masks [B,M,M]; of each with itself on the diagonal."""
        hidden = self.hidden(x)
        pairs = (hidden[:, None] | hidden[None]).flatten(0, 1)
        return ask(self.base, x, ~pairs).argmax(dim=2).unflatten(1, (len(hidden), len(hidden)))

    def one(self, pairs: Tensor) -> int:
        """The prediction from the classes of one image [M,M]."""
        first = pairs.diagonal()
        majority = int(last_argmax(first.bincount(minlength=self.num_classes)[None])[0])
        for n in (first != majority).nonzero()[:, 0].tolist():
            if bool((pairs[n] == first[n]).all()):
                return int(first[n])
        return majority

    def predict(self, x: Tensor) -> Tensor:
        return torch.tensor([self.one(pairs) for pairs in self.classes(x)], dtype=torch.long)

    def fits(self, threat: Any) -> bool:
        return max(one_patch(threat)) <= self.side

    def certify(self, x: Tensor, threat: Any) -> Any:
        prediction = self.predict(x)
        agree = (self.classes(x) == prediction[:, None, None]).flatten(1).all(dim=1)
        return claim(prediction, agree & self.fits(threat))


def printed(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> DoubleMasking:
    return DoubleMasking(base, num_classes)


ENTRY = Entry(
    module="patchcleanser",
    title="PatchCleanser, double masking (Xiang et al. 2022)",
    claim="No patch of that size changes the prediction.",
    read="code: inspire-group/PatchCleanser, utils/defense.py",
    adapted="Three masks an axis, patches of up to 2×2; every view under two masks is asked about at once.",
    printed=printed,
    sizes=sizes("1x4x4/1x1", "1x5x5/2x2"),
)
