"""The logits of ablations by a base of any kind: a plain network, one pass for all ablations, or pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustpatch import memory, precision
from robustpatch.ablations.base import Ablation
from robustpatch.classifiers import checks
from robustpatch.encoding import Encoding
from robustpatch.errors import InvalidInput
from robustpatch.gradients import in_chunks, numbers_backward


@dataclass(frozen=True)
class AblationLogits:
    """Scores ablations of images by `base` (see `SmoothedClassifier`), `chunk` ablated images at once."""

    base: nn.Module
    ablation: Ablation
    encoding: Encoding
    num_classes: int
    chunk: int | None

    @property
    def one_pass(self) -> bool:
        """True where the base scores all ablations of an image at once."""
        return hasattr(self.base, "score_all")

    @property
    def by_pairs(self) -> bool:
        """True where the base scores any pairs of image and ablation, by one computation for all of them or some."""
        return hasattr(self.base, "score_pairs")

    def __call__(self, x: Float[Tensor, "B C H W"], index: Int[Tensor, "..."] | None = None) -> Float[Tensor, "B n K"]:
        """See `SmoothedClassifier.logits`."""
        checks.shape_and_type(x)
        n = self.ablation.count(*x.shape[2:])
        asked = n if index is None else index.shape[-1]
        if asked == 0 or not len(x):  # a patch between the bands of a wide stride touches none
            return torch.zeros(len(x), asked, self.num_classes, device=x.device)
        if self.one_pass and not self.by_pairs:
            size = len(x) if self.base.training else self._chunk(x) // asked
            images = torch.arange(len(x), device=x.device).split(max(1, size))
            each = [(x[i], index[i] if index is not None and index.ndim == 2 else index) for i in images]
            logits = in_chunks(self._score_all, each)
        else:
            index = torch.arange(n, device=x.device) if index is None else index
            index = index.expand(len(x), -1) if index.ndim == 1 else index
            image = torch.arange(len(x), device=x.device)[:, None].expand_as(index)
            pairs = zip(*(ids.flatten().split(self._chunk(x)) for ids in (image, index)), strict=True)
            score = self._score_pairs if self.by_pairs else self._score_plain
            logits = in_chunks(score, [(x, *some) for some in pairs]).unflatten(0, index.shape)
        wanted = (len(x), asked, self.num_classes)
        if logits.shape != wanted:
            raise InvalidInput(
                f"the base returned logits of shape {tuple(logits.shape)}, not {wanted}; num_classes is "
                f"{self.num_classes}: make both agree"
            )
        return logits

    def _chunk(self, x: Tensor) -> int:
        values = self.encoding.channels(x.shape[1]) * x.shape[2] * x.shape[3]
        shown = getattr(self.base, "pair_values", values)  # of a base that leaves out what is hidden
        return self.chunk or memory.chunk(int(shown), x.device, torch.is_grad_enabled())

    def _shown(self, x: Tensor) -> Tensor:
        return numbers_backward(precision.matching(self.base, x))

    def _score_all(self, x: Tensor, index: Tensor | None) -> Tensor:
        index = None if index is None else index.clone()
        return self.base.score_all(self._shown(x).clone(), index).float()  # type: ignore[operator]

    def _score_pairs(self, x: Tensor, image: Tensor, index: Tensor) -> Tensor:
        shown = self._shown(x).clone()
        return self.base.score_pairs(shown, image.clone(), index.clone()).float()  # type: ignore[operator]

    def _score_plain(self, x: Tensor, image: Tensor, index: Tensor) -> Tensor:
        kept = self.ablation.masks(x.shape[2], x.shape[3], index)
        return self.base(self._shown(self.encoding(x[image], kept))).float()
