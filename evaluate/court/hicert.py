"""HiCert (Zhou et al. 2025): detection by masked views, also where they disagree but with little confidence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evaluate.court.entry import Entry, claim, sizes
from evaluate.court.patchcleanser import DoubleMasking
from evaluate.court.views import Base, ask


class HiCert(DoubleMasking):
    """PatchCleanser's masks, one at a time. An alert where a view under a mask is of another class than the whole
    image, or has a confidence below `least`. Certified where each has the class of the whole image, or less than
    `least`.

    A view under the mask that hides the patch is as it was, so for a silent answer j it would have to be of class j
    with at least `least`, which certified images have none of.
    """

    least = 0.75

    def views(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The class of the whole image [B], and class and confidence under each mask [B,M]."""
        hidden = self.hidden(x)
        scores = ask(self.base, x, torch.cat([torch.ones_like(hidden[:1]), ~hidden])).softmax(dim=2)
        confidence, said = scores[:, 1:].max(dim=2)
        return scores[:, 0].argmax(dim=1), said, confidence

    def predict(self, x: Tensor) -> Tensor:
        whole, said, confidence = self.views(x)
        alert = ((said != whole[:, None]) | (confidence < self.least)).any(dim=1)
        return torch.where(alert, -1, whole)

    def certify(self, x: Tensor, threat: Any) -> Any:
        whole, said, confidence = self.views(x)
        holds = ((said == whole[:, None]) | (confidence < self.least)).all(dim=1)
        return claim(whole, holds & self.fits(threat))


def printed(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> HiCert:
    return HiCert(base, num_classes)


ENTRY = Entry(
    module="hicert",
    title="HiCert (Zhou et al. 2025)",
    claim="Under every patch of that size the answer is the label or an alert.",
    read="code: worksubmission/HiCert, utils/pd.py (double_masking_detection_confidence_more_warn_original); "
    "abstract, arXiv 2512.06123",
    unknown="The theorems' wording. The code's other mode, with fewer alerts, was not tried.",
    adapted="The label is the class of the whole image (the paper also certifies labels that are not predicted); "
    "three masks an axis for patches of up to 2×2.",
    printed=printed,
    alerts=True,
    sizes=sizes("1x4x4/1x1", "1x5x5/2x2"),
)
