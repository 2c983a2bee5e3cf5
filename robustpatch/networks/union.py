"""The one-pass networks of several ablations as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustpatch.ablations.union import Union
from robustpatch.errors import InvalidInput


class UnionNet(nn.Module):
    """Logits of all ablations of a `Union`, each part's from its own one-pass network.

    Args:
        ablation: the `Union`. parts: a one-pass network for each of its parts, in order, for images of one size.
    """

    def __init__(self, ablation: Union, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        built = tuple(getattr(part, "ablation", None) for part in parts)
        if built != ablation.parts or not all(hasattr(part, "score_all") for part in parts):
            raise InvalidInput(
                f"parts are built for {', '.join(map(str, built))}, but ablation is {ablation}; give the one-pass "
                "network of each of its parts, in order"
            )
        self.ablation = ablation
        self.parts = nn.ModuleList(parts)

    def score_all(self, x: Float[Tensor, "B C H W"], index: Int[Tensor, "..."] | None = None) -> Float[Tensor, "B n K"]:
        """Logits of all ablations, or of those in `index`, [n] for every image alike or [B,n]."""
        if index is None:
            return torch.cat([part.score_all(x) for part in self.parts], dim=1)  # type: ignore[operator]
        index = index.expand(len(x), -1) if index.ndim == 1 else index
        scores = torch.zeros(())
        begin, found = 0, []
        for part, count in zip(self.parts, self.ablation.counts(x.shape[2], x.shape[3]), strict=True):
            own = (index >= begin) & (index < begin + count)
            places = own.any(dim=0).nonzero()[:, 0]  # where some image asks for one of this part's ablations
            if len(places):
                local = (index[:, places] - begin).clamp(0, count - 1)
                scores = part.score_all(x, local)  # type: ignore[operator]
                found.append((own, places, scores))
            begin += count
        chosen = scores.new_zeros(*index.shape, scores.shape[-1])
        for own, places, scores in found:
            chosen = torch.where(own[..., None], torch.zeros_like(chosen).index_copy(1, places, scores), chosen)
        return chosen

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N K"]:
        """The same as `score_all`."""
        return self.score_all(x)
